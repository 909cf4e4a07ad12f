"""All criteria over all blocks as one map: what each would remove first, above the plans it led to."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BlockScores, ScoreDraw
from shortened_llm.reporting import formats
from shortened_llm.reporting.certainty import DrawsAgreement, draws_agreements, undecided_blocks
from shortened_llm.reporting.rows import TrialRow, asked_ratios, plans_of_criterion
from shortened_llm.reporting.score_plot import block_tip


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One block by one criterion, in one draw of the calibration text."""

    shade: float | None
    """1 where the block goes first, 0 where it goes last; None without a score."""
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRow:
    """One criterion."""

    scores: BlockScores
    undecided: tuple[int, ...]
    cells: tuple[HeatCell, ...]
    draws: dict[str, tuple[HeatCell, ...]]
    """Cells by the other draws of the calibration text, by name: `seed 1235`."""
    agreements: tuple[DrawsAgreement, ...]
    """How far these draws agree, at each number of removed blocks that was asked for."""
    plans: tuple[tuple[str, tuple[int, ...]], ...]
    """The ratios that asked for each plan, `20 %`, and the blocks that it removes."""


def heat_rows(block_scores: Sequence[BlockScores], rows: Sequence[TrialRow]) -> tuple[HeatRow, ...]:
    """One row per criterion, in the order they were scored."""
    return tuple(_row(scores, rows) for scores in block_scores)


def _row(scores: BlockScores, rows: Sequence[TrialRow]) -> HeatRow:
    name, plans = scores.criterion, plans_of_criterion(rows, scores.criterion)
    counts = {len(plan.removed_blocks) for plan in plans} | {cut.count for cut in scores.cuts or ()}
    return HeatRow(
        scores=scores,
        undecided=undecided_blocks(scores),
        cells=_cells(scores, scores, name),
        draws={f"seed {one.seed}": _cells(scores, one, f"{name}, seed {one.seed}") for one in scores.draws},
        agreements=draws_agreements(scores, sorted(counts)),
        plans=tuple((asked_ratios(plan, name), plan.removed_blocks) for plan in plans),
    )


def _cells(scores: BlockScores, draw: BlockScores | ScoreDraw, name: str) -> tuple[HeatCell, ...]:
    scored = [block for block in draw.order if draw.scores[block] is not None]
    place = {block: index for index, block in enumerate(scored)}
    last = max(1, len(scored) - 1)

    def tip(block: int, score: float | None) -> str:
        value = block_tip(scores, block) if draw is scores else f"block {block}: {formats.significant(score)}"
        rank = f"{value}; removal rank {place[block] + 1} of {len(scored)}" if block in place else f"block {block}"
        unscored = ", not scored" if score is None else ""
        protected = ", protected" if block in scores.protected else ""
        return f"{name}, {rank}{unscored}{protected}"

    return tuple(
        HeatCell(shade=1 - place[block] / last if block in place else None, tip=tip(block, score))
        for block, score in enumerate(draw.scores)
    )
