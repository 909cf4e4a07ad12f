"""What every criterion yields."""

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionScores:
    """One score per block, in model order; the lowest is removed first."""

    scores: tuple[float, ...]
    standard_errors: tuple[float, ...] | None = None
    dense_perplexity: float | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """Blocks, least important first; of equal scores, the earlier block first."""
        return tuple(sorted(range(len(self.scores)), key=lambda block: (self.scores[block], block)))
