"""Watches the numbers of a run: steps that were skipped, and losses that jumped."""

import statistics
from collections.abc import Sequence

from shortened_llm.errors import NonFiniteLossError

# A spike stands this many nats and this many median deviations above the median of the steps before.
SPIKE_NATS = 0.5
SPIKE_DEVIATIONS = 8.0
WINDOW = 64
SETTLED = 8


class Guard:
    """Fed with each step's mean loss when the loop reads it from the device; the same on all workers."""

    def __init__(self, *, max_in_a_row: int, skipped: Sequence[int] = (), spikes: Sequence[int] = ()) -> None:
        self._max_in_a_row = max_in_a_row
        self._in_a_row = 0
        self._window: list[float] = []
        self.skipped = list(skipped)
        """Steps (from 0) that were left out."""
        self.spikes = list(spikes)
        """Steps whose loss stood far above those before."""

    def see(self, step: int, loss: float, *, skipped: bool) -> None:
        """Take note of a step.

        Args:
            loss: mean over the global batch, in nats.
            skipped: whether the update was left out.

        Raises:
            NonFiniteLossError: too many steps in a row were skipped.
        """
        if skipped:
            self.skipped.append(step)
            self._in_a_row += 1
            if self._in_a_row >= self._max_in_a_row:
                raise NonFiniteLossError(
                    f"step {step + 1} has loss {loss} and a gradient that is not finite, as have {self._in_a_row} in a "
                    "row; the last checkpoint holds finite weights: lower the learning rate or look at the data"
                )
            return
        self._in_a_row = 0
        if len(self._window) >= SETTLED:
            middle = statistics.median(self._window)
            spread = statistics.median(abs(value - middle) for value in self._window)
            if loss > middle + max(SPIKE_NATS, SPIKE_DEVIATIONS * spread):
                self.spikes.append(step)
        self._window = [*self._window, loss][-WINDOW:]
