"""One quantity against another: which models no other model beats on both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from shortened_llm.records import Experiment, GenerationPoint, Size
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import Measurements, ScoreColumn, Stage, protocol_notes
from shortened_llm.reporting.efficiency import (
    GIB,
    dense_point,
    lines_of,
    measured_efficiency,
    shape_name,
    shapes_of,
)
from shortened_llm.reporting.rows import TrialRow
from shortened_llm.reporting.tasks import TaskSet, set_titles, task_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What an axis shows."""

    title: str
    """`perplexity on wiki`, for headings."""
    axis: str
    """`parameters (millions)`."""
    protocol: str
    """How it was measured; empty where that says nothing."""
    lower_is_better: bool
    dense: float | None
    """Value of the dense model; None where it was not measured."""
    of: Callable[[TrialRow, Stage], float | None]
    written: Callable[[float], str]
    within_size: bool = False
    """Models compete with those of their size alone: what was never trained cost nothing, and would win everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One model in a panel."""

    x: float
    y: float
    row: TrialRow | None
    """None for the dense model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPanel:
    """All models by two quantities."""

    x: Quantity
    y: Quantity
    dense: ParetoPoint | None
    before: tuple[ParetoPoint, ...]
    after: tuple[ParetoPoint, ...]
    optimal: tuple[tuple[ParetoPoint, ...], ...]
    """Undominated points of those that compete, dense and after, from the best by x to the worst: one line, or one of
    each size."""
    controls: tuple[ParetoPoint, ...]
    """Retrained controls: shown, but no candidates."""

    @property
    def better(self) -> str:
        """Where the better models lie: `lower left`."""
        return f"{'lower' if self.y.lower_is_better else 'upper'} {'left' if self.x.lower_is_better else 'right'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelGroup:
    """Panels that share the quantity to be paid."""

    title: str
    panels: tuple[ParetoPanel, ...]


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


def pareto_panel(x: Quantity, y: Quantity, rows: Sequence[TrialRow]) -> ParetoPanel:
    """All models of which both quantities are known and finite."""

    def points(of: Sequence[TrialRow], stage: Stage) -> tuple[ParetoPoint, ...]:
        found = [_point(x.of(row, stage), y.of(row, stage), row) for row in of]
        return tuple(point for point in found if point)

    own = [row for row in rows if not row.is_control]
    dense, after = _point(x.dense, y.dense, None), points(own, "after")
    if x.within_size:
        targets = dict.fromkeys(target for row in own for target in row.plan.targets)
        competing = [[p for p in after if p.row and target in p.row.plan.targets] for target in targets]
    else:
        competing = [[*([dense] if dense else []), *after]]
    return ParetoPanel(
        x=x,
        y=y,
        dense=dense,
        before=points(own, "before"),
        after=after,
        optimal=tuple(_optimal(points, x, y) for points in competing),
        controls=points([row for row in rows if row.is_control], "after"),
    )


def _optimal(points: Sequence[ParetoPoint], x: Quantity, y: Quantity) -> tuple[ParetoPoint, ...]:
    x_sign, y_sign = (1 if quantity.lower_is_better else -1 for quantity in (x, y))
    places = pareto_optimal([(x_sign * point.x, y_sign * point.y) for point in points])
    return tuple(points[index] for index in places)


def _point(x: float | None, y: float | None, row: TrialRow | None) -> ParetoPoint | None:
    if x is None or y is None or not math.isfinite(x) or not math.isfinite(y):
        return None
    return ParetoPoint(x=x, y=y, row=row)


def plotted_columns(columns: Sequence[ScoreColumn]) -> tuple[ScoreColumn, ...]:
    """The perplexities to plot: report texts, or selection texts where nothing was measured for the report."""
    texts = [column for column in columns if column.kind == "text"]
    report = tuple(column for column in texts if column.role == "report")
    return report or tuple(texts)


def panel_groups(
    experiment: Experiment,
    rows: Sequence[TrialRow],
    dense: Measurements,
    texts: Sequence[ScoreColumn],
    sets: Sequence[TaskSet],
) -> tuple[PanelGroup, ...]:
    """Size, latency, memory and training cost against quality: what was measured of it.

    Args:
        texts: perplexities, each a panel of size.
        sets: tasks, each a mean.
    """
    perplexities = [perplexity(column, dense) for column in texts]
    means = [task_means(title, own, dense) for title, own in zip(set_titles(sets), sets, strict=True)]
    first = [index for index, column in enumerate(texts) if column.unit in experiment.unseen_units] or [0]
    qualities = [*(perplexities[index] for index in first[:1] if perplexities), *means]
    groups = [
        ("Size", sizes(experiment, rows), [*perplexities, *means]),
        ("Latency", measured_costs(rows, "latency", "s", 0, lambda point: point.latency), qualities),
        (
            "Peak memory",
            measured_costs(rows, "peak memory", "GiB", -1, lambda point: point.peak_memory_bytes / GIB),
            qualities,
        ),
        ("Training cost", accelerator_hours(rows), qualities),
    ]
    made = []
    for title, costs, by in groups:
        panels = (pareto_panel(x, y, rows) for x in costs for y in by)
        shown = tuple(panel for panel in panels if panel.after or panel.before or (title == "Size" and panel.dense))
        made += [PanelGroup(title=title, panels=shown)] if shown else []
    return tuple(made)


def perplexity(column: ScoreColumn, dense: Measurements) -> Quantity:
    def of(row: TrialRow, stage: Stage) -> float | None:
        found = row.before if stage == "before" else row.after
        return found[column].value if column in found else None

    return Quantity(
        title=f"perplexity on {column.title} ({column.role})",
        axis="perplexity",
        protocol=column.protocol,
        lower_is_better=True,
        dense=dense[column].value if column in dense else None,
        of=of,
        written=formats.perplexity,
    )


def task_means(title: str, tasks: TaskSet, dense: Measurements) -> Quantity:
    notes = protocol_notes(tasks)
    return Quantity(
        title=title,
        axis=title,
        protocol="; ".join(f"{of}: {protocol}" for protocol, of in notes.items())
        if len(tasks) > 1
        else next(iter(notes)),
        lower_is_better=False,
        dense=task_mean(dense, tasks),
        of=lambda row, stage: task_mean(row.before if stage == "before" else row.after, tasks),
        written=formats.accuracy,
    )


def sizes(experiment: Experiment, rows: Sequence[TrialRow]) -> list[Quantity]:
    """Parameters; and those that are not zero, where any are."""
    have_zeros = any(row.plan.size.nonzero_parameters < row.plan.size.parameters for row in rows)
    all_of, counting = attrgetter("parameters"), attrgetter("nonzero_parameters")
    found = [parameters(experiment, "parameters", all_of)]
    return [*found, parameters(experiment, "non-zero parameters", counting)] if have_zeros else found


def parameters(experiment: Experiment, name: str, number: Callable[[Size], int]) -> Quantity:
    scale, unit = (1e9, "billions") if experiment.dense_size.parameters >= 1e9 else (1e6, "millions")
    return Quantity(
        title=name,
        axis=f"{name} ({unit})",
        protocol="",
        lower_is_better=True,
        dense=number(experiment.dense_size) / scale,
        of=lambda row, stage: number(row.plan.size) / scale,
        written=lambda value: f"{formats.parameters(value * scale)} {name}",
    )


def measured_costs(
    rows: Sequence[TrialRow], name: str, unit: str, place: int, measure: Callable[[GenerationPoint], float]
) -> list[Quantity]:
    """One per protocol, at the shape of input in this place of all, from the smallest."""
    found = []
    for (_, protocol), scores in measured_efficiency(rows).items():
        of = shapes_of(list(scores.values()))[place]
        lines = {number: lines_of(score).get(of) for number, score in scores.items()}
        values = {number: measure(line.point) for number, line in lines.items() if line}
        found.append(
            Quantity(
                title=f"{name} at {shape_name(of)}",
                axis=f"{name} ({unit}), {shape_name(of)}",
                protocol=protocol,
                lower_is_better=True,
                dense=measure(dense_point(list(scores.values()), of)),
                of=partial(_after, values),
                written=lambda value: f"{formats.significant(value, 3)} {unit}",
            )
        )
    return found


def _after(values: Mapping[int, float], row: TrialRow, stage: Stage) -> float | None:
    return values.get(row.number) if stage == "after" else None


def accelerator_hours(rows: Sequence[TrialRow]) -> list[Quantity]:
    """The cost of training; none where no trial has any. What was not trained cost nothing."""
    if not any(row.accelerator_seconds for row in rows):
        return []

    def of(row: TrialRow, stage: Stage) -> float | None:
        if stage == "before":
            return 0.0
        return None if row.accelerator_seconds is None else row.accelerator_seconds / 3600

    return [
        Quantity(
            title="accelerator hours",
            axis="accelerator hours of training",
            protocol="",
            lower_is_better=True,
            dense=0.0,
            of=of,
            written=lambda value: f"{formats.significant(value, 3)} accelerator hours" if value else "untrained",
            within_size=True,
        )
    ]
