"""All criteria over all units as one map: what each would remove first, above the plans it led to."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import UnitScores, unit_name, units_gone
from shortened_llm.reporting.certainty import undecided_units
from shortened_llm.reporting.rows import TrialRow, asked_ratios, plans_of_criterion
from shortened_llm.reporting.score_plot import unit_tip


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One unit by one criterion."""

    shade: float | None
    """1 where the unit goes first, 0 where it goes last; None without a score."""
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRow:
    """One criterion."""

    scores: UnitScores
    undecided: tuple[int, ...]
    cells: tuple[HeatCell, ...]
    plans: tuple[tuple[str, tuple[int, ...]], ...]
    """The ratios that asked for each plan, `20 %`, and the units that it removes."""


def heat_rows(unit_scores: Sequence[UnitScores], rows: Sequence[TrialRow]) -> tuple[HeatRow, ...]:
    """One row per criterion, in the order they were scored."""
    return tuple(
        HeatRow(
            scores=scores,
            undecided=undecided_units(scores),
            cells=_cells(scores),
            plans=tuple(
                (asked_ratios(plan, scores.ranking), units_gone(scores.unit, plan.transforms, plan.dense.blocks))
                for plan in plans_of_criterion(rows, scores.ranking)
            ),
        )
        for scores in unit_scores
    )


def _cells(scores: UnitScores) -> tuple[HeatCell, ...]:
    scored = [unit for unit in scores.order if scores.scores[unit] is not None]
    place = {unit: index for index, unit in enumerate(scored)}
    last = max(1, len(scored) - 1)

    def tip(unit: int) -> str:
        known = f"{unit_name(scores.unit, unit)}, not scored"
        if unit in place:
            known = f"{unit_tip(scores, unit)}; removal rank {place[unit] + 1} of {len(scored)}"
        return f"{scores.ranking}, {known}" + (", protected" if unit in scores.protected else "")

    return tuple(
        HeatCell(shade=1 - place[unit] / last if unit in place else None, tip=tip(unit))
        for unit in range(len(scores.scores))
    )
