"""Speed, memory and time left of a run, as the metrics that it reports."""

import resource
import time
from collections.abc import Mapping

import torch

from shortened_llm import metrics
from shortened_llm.retraining.flops import peak_flops


class Meter:
    """Measures from report to report."""

    def __init__(self, device: torch.device, dtype: str, *, flops_per_token: float, world_size: int) -> None:
        """`flops_per_token`: of the whole step, teacher included."""
        self._device, self._flops, self._world_size = device, flops_per_token, world_size
        self._peak = peak_flops(device, dtype)
        self._waited = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin to measure."""
        self._started = time.monotonic()
        self.tokens = 0
        """What the interval measured so far, over all workers."""

    def step(self, tokens: int) -> None:
        """A step took this many tokens, over all workers."""
        self.tokens += tokens

    @property
    def seconds(self) -> float:
        """Since the start of the interval."""
        return time.monotonic() - self._started

    def measure(self, *, waited: float, left: int, tokens_per_step: float) -> dict[str, float]:
        """Metrics of the interval.

        Args:
            waited: seconds that the data has been waited for since the run's start.
            left: steps still to do.
            tokens_per_step: of a usual step.
        """
        seconds = max(self.seconds, 1e-9)
        speed = self.tokens / seconds
        flops = speed * self._flops / self._world_size
        values = {
            metrics.TOKENS_PER_SECOND: speed,
            metrics.FLOPS: flops,
            metrics.MEMORY_GIB: self._memory() / 2**30,
            metrics.DATA_WAIT: (waited - self._waited) / seconds,
            metrics.SECONDS_LEFT: left * tokens_per_step / speed if speed else 0.0,
        }
        self._waited = waited
        return values | ({metrics.MFU: flops / self._peak} if self._peak else {})

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def progress_line(values: Mapping[str, float], num_steps: int) -> str:
    """The metrics of a report as a line of the log."""
    mfu = f", MFU {100 * values[metrics.MFU]:.0f} %" if metrics.MFU in values else ""
    held_out = f", validation {values[metrics.VALIDATION_LOSS]:.3f}" if metrics.VALIDATION_LOSS in values else ""
    skipped = f", {values[metrics.SKIPPED_STEPS]} skipped" if values[metrics.SKIPPED_STEPS] else ""
    return (
        f"step {values[metrics.STEP]}/{num_steps}, {values[metrics.TOKENS]:,} tokens, loss {values[metrics.LOSS]:.3f}"
        f"{held_out}, {values[metrics.TOKENS_PER_SECOND]:,.0f} tokens/s{mfu}{skipped}, "
        f"{values[metrics.SECONDS_LEFT]:.0f} s left"
    )
