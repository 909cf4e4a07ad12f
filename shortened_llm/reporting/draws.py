"""Draws of the calibration text side by side: how much the order of removal owes to the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BlockScores, ScoreDraw, removed_blocks
from shortened_llm.reporting.certainty import listed


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawCell:
    """One block in one draw."""

    rank: int
    """Place in the order of removal, from 1, before protection."""
    shade: float
    """Share of the requested cuts by which the block goes, in 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawsTable:
    """One criterion by several draws; the first is the one that plans follow."""

    criterion: str
    draws: tuple[str, ...]
    lines: tuple[tuple[DrawCell | None, ...], ...]
    """[num_blocks][draws]; None where the criterion never scores the block."""
    agreements: tuple[str, ...]
    """One sentence per requested cut."""


def draws_table(scores: BlockScores, counts: Sequence[int]) -> DrawsTable | None:
    """None where the calibration text was drawn once.

    Args:
        counts: numbers of blocks to remove, ascending, for which the draws are compared.
    """
    if not scores.draws:
        return None
    columns: tuple[BlockScores | ScoreDraw, ...] = (scores, *scores.draws)
    removed = [[removed_blocks(draw.order, draw.sets, scores.protected, c) for c in counts] for draw in columns]
    ranks = [{block: rank for rank, block in enumerate(draw.order, start=1)} for draw in columns]

    def cell(draw: int, block: int) -> DrawCell | None:
        if columns[draw].scores[block] is None:
            return None
        goes = sum(block in blocks for blocks in removed[draw])
        return DrawCell(rank=ranks[draw][block], shade=goes / len(counts) if counts else 0.0)

    agreements = [
        _agreement(scores.criterion, count, [of_draw[index] for of_draw in removed])
        for index, count in enumerate(counts)
    ]
    return DrawsTable(
        criterion=scores.criterion,
        draws=("used", *(f"seed {draw.seed}" for draw in scores.draws)),
        lines=tuple(tuple(cell(d, block) for d in range(len(columns))) for block in range(len(scores.scores))),
        agreements=tuple(agreements),
    )


def _agreement(criterion: str, count: int, removed: Sequence[tuple[int, ...]]) -> str:
    """How many of the `count` blocks go in every draw, and which go in some only."""
    always = set.intersection(*map(set, removed))
    sometimes = sorted(set.union(*map(set, removed)) - always)
    sentence = f"{criterion} at {count} removed: the {len(removed)} draws agree on {len(always)} of {count} blocks"
    if not sometimes:
        return f"{sentence}."
    return f"{sentence}; {listed(sometimes)} go in some draws only."
