"""Block scores as a table: one line per block, some cells per criterion, shaded within a criterion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BlockScores
from shortened_llm.reporting.certainty import chances, undecided_blocks
from shortened_llm.reporting.plots import needs_log


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCell:
    """One block by one criterion."""

    score: float | None
    """None where the criterion never scores the block."""
    standard_error: float | None
    rank: int | None
    """Place in the order of removal, from 1, before protection; None without a score."""
    protected: bool
    undecided: bool
    """At some requested cut."""
    chances: str
    """By how many resamples it goes, at each requested cut; empty where that is not known."""
    shade: float
    """0 at the criterion's lowest score, 1 at its highest. For colour only: criteria have different scales."""


def shades(values: Sequence[float | None]) -> tuple[float, ...]:
    """Each value's place between the lowest and the highest, in 0..1; of logarithms where they span far."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    scale = math.log if needs_log(finite) else float
    low, high = (scale(min(finite)), scale(max(finite))) if finite else (0.0, 0.0)
    width = (high - low) or 1.0
    return tuple(
        (scale(value) - low) / width if value is not None and math.isfinite(value) else 0.0 for value in values
    )


def score_lines(block_scores: Sequence[BlockScores], num_blocks: int) -> list[list[ScoreCell]]:
    """[num_blocks][criteria] cells."""
    columns = [_cells(scores) for scores in block_scores]
    return [[column[block] for column in columns] for block in range(num_blocks)]


def _cells(scores: BlockScores) -> list[ScoreCell]:
    ranks = {block: place for place, block in enumerate(scores.order, start=1)}
    undecided = undecided_blocks(scores)
    return [
        ScoreCell(
            score=score,
            standard_error=scores.standard_errors[block] if scores.standard_errors else None,
            # An order places every block; without a score the place means nothing.
            rank=None if score is None else ranks[block],
            protected=block in scores.protected,
            undecided=block in undecided,
            chances=chances(scores, block),
            shade=shade,
        )
        for block, (score, shade) in enumerate(zip(scores.scores, shades(scores.scores), strict=True))
    ]
