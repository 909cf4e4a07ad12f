"""What every criterion yields."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionScores:
    """One score per block, in model order; the lowest is removed first."""

    scores: tuple[float | None, ...]
    """None for a block that is never scored: it comes last."""
    standard_errors: tuple[float, ...] | None = None
    dense_perplexity: float | None = None
    sets: tuple[tuple[int, ...], ...] | None = None
    """Blocks to remove, ascending, per count, where they are chosen anew for each."""
    removal_order: tuple[int, ...] | None = None
    """Blocks, first removed first, where that is not the order of the scores."""

    @property
    def order(self) -> tuple[int, ...]:
        """Blocks, least important first; of equal scores, the earlier block first."""
        if self.removal_order is not None:
            return self.removal_order
        scores = [float("inf") if score is None else score for score in self.scores]
        return tuple(sorted(range(len(scores)), key=lambda block: (scores[block], block)))


def standard_errors(per_sequence: np.ndarray) -> np.ndarray | None:
    """Standard error of the mean over sequences, for values [sequences, ...]; None for a single sequence.

    Over sequences, not tokens: the tokens of one sequence are correlated.
    """
    if len(per_sequence) < 2:
        return None
    return per_sequence.std(axis=0, ddof=1) / np.sqrt(len(per_sequence))


def floats(values: np.ndarray | None) -> tuple[float, ...] | None:
    """An array [blocks] as it stands in a record."""
    return None if values is None else tuple(values.tolist())
