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
    protected: bool
    undecided: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One plan of a criterion."""

    name: str
    """`20 %`: the ratios that asked for it."""
    removed: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRow:
    """One criterion."""

    criterion: str
    cells: tuple[HeatCell, ...]
    plans: tuple[PlanRow, ...]


def heat_rows(block_scores: Sequence[BlockScores], rows: Sequence[TrialRow]) -> tuple[HeatRow, ...]:
    """One row per criterion, in the order they were scored."""
    return tuple(
        HeatRow(
            criterion=scores.ranking,
            cells=_cells(scores),
            plans=tuple(
                PlanRow(name=asked_ratios(plan, scores.ranking), removed=frozenset(plan.removed_blocks))
                for plan in plans_of_criterion(rows, scores.ranking)
            ),
        )
        for scores in block_scores
    )


def _cells(scores: BlockScores) -> tuple[HeatCell, ...]:
    scored = [block for block in scores.order if scores.scores[block] is not None]
    place = {block: index for index, block in enumerate(scored)}
    undecided = undecided_blocks(scores)
    last = max(1, len(scored) - 1)
    cells = []
    for block, score in enumerate(scores.scores):
        protected = block in scores.protected
        rank = f", removal rank {place[block] + 1} of {len(scored)}" if block in place else ", not scored"
        tip = block_tip(scores, block) if score is not None else f"block {block}"
        cells.append(
            HeatCell(
                shade=1 - place[block] / last if block in place else None,
                tip=f"{scores.ranking}, {tip}{rank}" + (", protected" if protected else ""),
                protected=protected,
                undecided=block in undecided,
            )
        )
    return tuple(cells)
