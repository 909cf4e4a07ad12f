"""All criteria over all blocks as one map: what each would remove first, above the plans it led to."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BlockScores
from shortened_llm.reporting.certainty import undecided_blocks
from shortened_llm.reporting.rows import TrialRow, asked_ratios, plans_of_criterion
from shortened_llm.reporting.score_plot import block_tip


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One block by one criterion."""

    shade: float | None
    """1 where the block goes first, 0 where it goes last; None without a score."""
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRow:
    """One criterion."""

    scores: BlockScores
    undecided: tuple[int, ...]
    cells: tuple[HeatCell, ...]
    plans: tuple[tuple[str, tuple[int, ...]], ...]
    """The ratios that asked for each plan, `20 %`, and the blocks that it removes."""


def heat_rows(block_scores: Sequence[BlockScores], rows: Sequence[TrialRow]) -> tuple[HeatRow, ...]:
    """One row per criterion, in the order they were scored."""
    return tuple(
        HeatRow(
            scores=scores,
            undecided=undecided_blocks(scores),
            cells=_cells(scores),
            plans=tuple(
                (asked_ratios(plan, scores.ranking), plan.removed_blocks)
                for plan in plans_of_criterion(rows, scores.ranking)
            ),
        )
        for scores in block_scores
    )


def _cells(scores: BlockScores) -> tuple[HeatCell, ...]:
    scored = [block for block in scores.order if scores.scores[block] is not None]
    place = {block: index for index, block in enumerate(scored)}
    last = max(1, len(scored) - 1)

    def tip(block: int) -> str:
        known = f"block {block}, not scored"
        if block in place:
            known = f"{block_tip(scores, block)}; removal rank {place[block] + 1} of {len(scored)}"
        return f"{scores.ranking}, {known}" + (", protected" if block in scores.protected else "")

    return tuple(
        HeatCell(shade=1 - place[block] / last if block in place else None, tip=tip(block))
        for block in range(len(scores.scores))
    )
