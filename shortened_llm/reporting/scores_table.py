"""Block scores as a table: one line per block, one pair of cells per criterion, shaded within a criterion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BlockScores
from shortened_llm.reporting.plots import needs_log


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCell:
    """The score of one block by one criterion."""

    score: float
    standard_error: float | None
    rank: int
    """Place in the order of removal, from 1, before protection."""
    protected: bool
    shade: float
    """0 at the criterion's lowest score, 1 at its highest. For colour only: criteria have different scales."""


def shades(values: Sequence[float]) -> tuple[float, ...]:
    """Each value's place between the lowest and the highest, in 0..1; of logarithms where they span far."""
    finite = [value for value in values if math.isfinite(value)]
    scale = math.log if needs_log(finite) else float
    low, high = (scale(min(finite)), scale(max(finite))) if finite else (0.0, 0.0)
    width = (high - low) or 1.0
    return tuple((scale(value) - low) / width if math.isfinite(value) else 0.0 for value in values)


def score_lines(block_scores: Sequence[BlockScores], num_blocks: int) -> list[list[ScoreCell | None]]:
    """[num_blocks][criteria] cells; None where a criterion has no score of a block."""
    columns = []
    for scores in block_scores:
        rank = {block: place for place, block in enumerate(scores.order, start=1)}
        columns.append(
            {
                block: ScoreCell(
                    score=score,
                    standard_error=scores.standard_errors[block] if scores.standard_errors else None,
                    rank=rank[block],
                    protected=block in scores.protected,
                    shade=shade,
                )
                for block, (score, shade) in enumerate(zip(scores.scores, shades(scores.scores), strict=True))
            }
        )
    return [[column.get(block) for column in columns] for block in range(num_blocks)]
