"""Size against perplexity: which models no other model beats on both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.rows import TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One model in a panel."""

    parameters: int
    perplexity: float
    row: TrialRow | None
    """None for the dense model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPanel:
    """All models on one text under one protocol."""

    column: ScoreColumn
    dense: ParetoPoint | None
    before: tuple[ParetoPoint, ...]
    after: tuple[ParetoPoint, ...]
    optimal: tuple[ParetoPoint, ...]
    """Of dense and after, from the smallest model to the largest."""
    controls: tuple[ParetoPoint, ...]
    """Retrained controls: shown, but no candidates."""


def pareto_optimal(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points that no other point dominates, both coordinates minimised, ascending in the first.

    A point dominates another if it is no worse in both coordinates and better in one; so equal points stand together.
    """
    order = sorted(range(len(points)), key=lambda index: points[index])
    optimal: list[int] = []
    for index in order:
        # In this order only an earlier point can dominate, and the last optimal one is the lowest so far.
        if not optimal or points[index][1] < points[optimal[-1]][1] or points[index] == points[optimal[-1]]:
            optimal.append(index)
    return tuple(optimal)


def plotted_columns(columns: Sequence[ScoreColumn]) -> tuple[ScoreColumn, ...]:
    """The perplexities to plot: report texts, or selection texts where nothing was measured for the report."""
    texts = [column for column in columns if not column.is_task]
    report = tuple(column for column in texts if column.role == "report")
    return report or tuple(texts)


def pareto_panel(
    column: ScoreColumn, rows: Sequence[TrialRow], dense: Measurements, dense_parameters: int
) -> ParetoPanel:
    """The panel of one column. Models without a finite perplexity in it are left out."""

    def point(found: Measurements, parameters: int, row: TrialRow | None) -> tuple[ParetoPoint, ...]:
        if column not in found or not math.isfinite(found[column].value):
            return ()
        return (ParetoPoint(parameters=parameters, perplexity=found[column].value, row=row),)

    dense_points = point(dense, dense_parameters, None)
    own = [row for row in rows if not row.is_control]
    after = tuple(p for row in own for p in point(row.after, row.plan.parameters, row))
    before = tuple(p for row in own for p in point(row.before, row.plan.parameters, row))
    controls = tuple(p for row in rows if row.is_control for p in point(row.after, row.plan.parameters, row))
    candidates = dense_points + after
    optimal = pareto_optimal([(candidate.parameters, candidate.perplexity) for candidate in candidates])
    return ParetoPanel(
        column=column,
        dense=dense_points[0] if dense_points else None,
        before=before,
        after=after,
        optimal=tuple(candidates[index] for index in optimal),
        controls=controls,
    )
