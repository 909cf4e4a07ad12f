"""Where the time of a generation goes: blocks, head, and the rest. Hooks slow it, so it is never a timed one."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.evaluation.generation import Timing, synchronise
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.transforms import KINDS
from shortened_llm.records import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeShares:
    """Shares of a generation's latency, 0 to 1; embeddings, final norm and the loop around the model are the rest."""

    blocks: tuple[float, ...]
    """Share of each block, in model order."""
    head: float

    def ideal_speed_up(self, shortening: Sequence[Transform] | None) -> float | None:
        """Dense time / (dense time less what was removed of it), if nothing but that went away.

        Args:
            shortening: what was done to the dense model.

        Returns:
            None where that is not known, or does not tell what it saves.
        """
        if shortening is None or len(shortening) > 1:
            return None
        left = [KINDS[transform.kind].time_left(self.blocks, transform) for transform in shortening] or [1.0]
        return 1 / left[0] if left[0] else None


def time_shares(model: PreTrainedModel, generate: Callable[[], Timing], runs: int) -> TimeShares:
    """Median over `runs` generations by `model`, with a hook before and behind each part.

    On a GPU the hooks record events on its stream and wait for nothing: a part's time is that between its events, also
    where the GPU waits for the launch of its kernels.
    """
    parts: list[nn.Module] = [*find_blocks(model), model.get_output_embeddings()]
    found = []
    with ExitStack() as hooks:
        watches = [_Watch(part, model.device, hooks) for part in parts]
        for _ in range(runs):
            latency = generate().latency
            found.append([watch.take_seconds() / latency for watch in watches])
    *blocks, head = (median(shares) for shares in zip(*found, strict=True))
    return TimeShares(blocks=tuple(blocks), head=head)


class _Watch:
    """Notes when a module begins and ends, each time it runs."""

    def __init__(self, module: nn.Module, device: torch.device, hooks: ExitStack) -> None:
        self._device = device
        self._moments: list[Any] = []
        """Beginnings and ends by turns: seconds, or events on the GPU's stream."""
        hooks.callback(module.register_forward_pre_hook(self._note).remove)
        hooks.callback(module.register_forward_hook(self._note).remove)

    def _note(self, *_: object) -> None:
        if self._device.type != "cuda":
            self._moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._moments.append(event)

    def take_seconds(self) -> float:
        """Seconds of all runs since the last call."""
        moments, self._moments = self._moments, []
        synchronise(self._device)
        runs = zip(moments[::2], moments[1::2], strict=True)
        if self._device.type != "cuda":
            return sum(end - start for start, end in runs)
        return sum(start.elapsed_time(end) for start, end in runs) / 1000
