"""Three figures: one quantity against another, loss against tokens within runs, and over rungs.

Scores by block are in `score_plot.py`.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shortened_llm.records import RetrainedModel, TrainingPoint
from shortened_llm.reporting import formats
from shortened_llm.reporting.pareto import ParetoPanel, ParetoPoint
from shortened_llm.reporting.recovery_lines import TargetRecovery
from shortened_llm.reporting.rows import TrialRow
from shortened_llm.reporting.style import INK, SeriesStyle, plain_ticks, series_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Styles = Mapping[tuple[str, ...], SeriesStyle]

LINE_STYLES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
LINE_NAMES = ("solid", "dashed", "dotted", "dash-dotted")
LOG_FROM = 8
"""Largest / smallest value from which a log axis is clearer."""
MAX_CURVE_POINTS = 200
"""Points of a loss curve; of more, neighbours are averaged."""
FEW_POINTS = 10
"""Below this number, each point is marked."""
EXTRAPOLATED = 3
"""Times the longest run to which a recovery curve is drawn."""


def needs_log(values: Sequence[float]) -> bool:
    """Whether positive values spread so far that a linear scale hides the lower ones; places of a ranking never do."""
    if not values or min(values) <= 0:
        return False
    ranking = all(float(value).is_integer() for value in values)
    return max(values) / min(values) > LOG_FROM and not ranking


def draw_pareto(
    axes: "Axes", panel: ParetoPanel, styles: Styles, greyed: Collection[int] = frozenset()
) -> dict[str, str]:
    """Two quantities of all models; returns what each point is, by gid.

    Args:
        greyed: numbers of trials to draw pale.
    """
    dense = (panel.dense,) if panel.dense else ()
    tips: dict[str, str] = {}

    def mark(point: ParetoPoint, stage: str, **options: object) -> None:
        gid = f"{stage}-{point.row.number if point.row else 0}"
        name = f"#{point.row.number} {point.row.trial.spec.name}, {stage} retraining" if point.row else "dense"
        tips[gid] = f"{name}: {panel.y.written(point.y)}, {panel.x.written(point.x)}"
        axes.plot([point.x], [point.y], linestyle="none", gid=gid, **options)  # type: ignore[arg-type]

    after_of = {point.row.number: point for point in panel.after if point.row}
    drawn: set[tuple[float, float]] = set()
    for point in panel.before:
        assert point.row is not None
        style = styles[point.row.criteria]
        if point.row.number in after_of and after_of[point.row.number].x == point.x:
            after = after_of[point.row.number]
            pair = ([point.x, after.x], [point.y, after.y])
            axes.plot(*pair, color=style.colour, alpha=0.3, linewidth=0.8, zorder=1)
        # Trials of one plan share the point before retraining.
        if (point.x, point.y) not in drawn:
            drawn.add((point.x, point.y))
            mark(point, "before", marker=style.marker, markersize=5, mfc="none", mec=style.colour, zorder=3)
    for line in panel.optimal:
        axes.plot([point.x for point in line], [point.y for point in line], color=INK, linewidth=1, zorder=2)
    for point in panel.after:
        assert point.row is not None
        style, alpha = styles[point.row.criteria], 0.35 if point.row.number in greyed else 1
        mark(
            point, "after", marker=style.marker, markersize=5, mfc=style.colour, mec=style.colour, alpha=alpha, zorder=4
        )
        if point.row.is_best:
            _note(axes, f"#{point.row.number}", point)
    for point in panel.controls:
        mark(point, "after", marker="x", markersize=6, mec=INK, mew=1.4, zorder=4)
    for point in dense:
        mark(point, "dense", marker="*", markersize=11, mfc=INK, mec=INK, zorder=4)
        _note(axes, "dense", point, beside=True)
    plain_ticks(axes, log_y=needs_log([point.y for point in (*dense, *panel.before, *panel.after, *panel.controls)]))
    axes.margins(x=0.14, y=0.12)
    axes.set_xlabel(panel.x.axis)
    axes.set_ylabel(panel.y.axis)
    return tips


def _note(axes: "Axes", text: str, point: ParetoPoint, *, beside: bool = False) -> None:
    """Below a point; beside the dense model's, since its own controls lie above and below."""
    offset, ha, va = ((9, 0), "left", "center") if beside else ((0, -13), "center", "baseline")
    axes.annotate(text, (point.x, point.y), xytext=offset, textcoords="offset points", ha=ha, va=va, fontsize=8)


Curve = list[tuple[float, float]]
Value = Callable[[TrainingPoint], float | None]


def curves(runs: Sequence[RetrainedModel], value: Value) -> list[Curve]:
    """(tokens, value) of each run of a chain, its tokens counted on from the run before; runs without one left out."""
    found: list[Curve] = []
    start = 0
    for run in runs:
        measured = [(start + point.tokens, value(point)) for point in run.history]
        curve = thinned([(x, y) for x, y in measured if y is not None and math.isfinite(y)])
        found += [curve] if curve else []
        start += run.tokens
    return found


def thinned(curve: Curve) -> Curve:
    """The curve itself; where it is long, means over neighbouring points."""
    size = math.ceil(len(curve) / MAX_CURVE_POINTS) or 1
    chunks = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def curve_names(rows: Sequence[TrialRow], styles: Styles) -> dict[int, tuple[str, str]]:
    """What the colour of each trial's curve stands for, and the colour: methods where there are several, else criteria.

    Args:
        styles: those of the criteria.
    """
    methods = tuple(dict.fromkeys(sorted(row.method for row in rows if row.learning_rates and not row.is_control)))
    by_method = series_styles([(method,) for method in methods])
    names = {}
    for row in rows:
        if row.is_control:
            names[row.number] = ("controls", INK)
        elif len(methods) > 1 and row.learning_rates:
            names[row.number] = (row.method, by_method[(row.method,)].colour)
        else:
            names[row.number] = (" + ".join(row.criteria), styles[row.criteria].colour)
    return names


def line_styles(rows: Sequence[TrialRow]) -> dict[str, int]:
    """Name of each size -> index of its line style, largest model first."""
    sizes = dict.fromkeys(row.size_name for row in sorted(rows, key=lambda row: -row.plan.size.parameters))
    return {size: index % len(LINE_STYLES) for index, size in enumerate(sizes)}


def draw_losses(axes: "Axes", rows: Sequence[TrialRow], styles: Styles, value: Value, label: str) -> dict[str, str]:
    """A loss of every trial that has it, against tokens; the lines of the best of each size end in its number.

    Args:
        label: what the loss is.
    """
    tips: dict[str, str] = {}
    dashes, names = line_styles(rows), curve_names(rows, styles)
    for row in rows:
        for curve in (drawn := curves(row.runs, value)):
            tips[f"loss-{row.number}"] = (
                f"#{row.number} {row.trial.spec.name}: {drawn[-1][-1][1]:.3f} nats per token at the end"
            )
            axes.plot(
                *zip(*curve, strict=True),
                color=names[row.number][1],
                linewidth=1.2,
                linestyle=LINE_STYLES[dashes[row.size_name]],
                marker="o" if len(curve) < FEW_POINTS else None,
                markersize=3,
                gid=f"loss-{row.number}",
            )
        if drawn and row.is_best:
            _number(axes, row.number, drawn[-1][-1], names[row.number][1])
    _label_losses(axes, label)
    axes.margins(x=0.02)
    return tips


def draw_recovery(axes: "Axes", recovery: TargetRecovery, styles: Styles, greyed: Collection[int]) -> dict[str, str]:
    """The loss of each candidate at its rungs against tokens, with its curve if any: dashed beyond its longest run."""
    tips: dict[str, str] = {}
    laws = {line.row.number: line.law for line in recovery.lines}
    points = {
        one.last.number: [(row.tokens, row.selection_nll) for row in one.rows if row.tokens and row.selection_nll]
        for one in recovery.race.candidates
    }
    furthest = EXTRAPOLATED * max(tokens for found in points.values() for tokens, _ in found)
    for one in recovery.race.candidates:
        row, found = one.last, points[one.last.number]
        if not found:
            continue
        style = styles[row.criteria]
        alpha, gid = 0.35 if row.number in greyed else 1.0, f"recovery-{row.number}"
        tips[gid] = f"#{row.number} {row.trial.spec.name}: {formats.nll(found[-1][1])} nats per token"
        axes.plot(*zip(*found, strict=True), style.marker, color=style.colour, alpha=alpha, markersize=5, gid=gid)
        if law := laws.get(row.number):
            longest = found[-1][0]
            for start, end, line in ((found[0][0], longest, "solid"), (longest, furthest, "dashed")):
                tokens = np.geomspace(start, end, 50)
                axes.plot(tokens, law.loss(tokens), color=style.colour, alpha=alpha, linewidth=1.2, linestyle=line)
            _number(axes, row.number, (furthest, float(law.loss(np.array(furthest)))), style.colour)
        else:
            axes.plot(*zip(*found, strict=True), color=style.colour, alpha=alpha / 2, linewidth=0.8)
    axes.set_xscale("log")
    _label_losses(axes, "mean selection NLL")
    axes.set_xticks(sorted({tokens for found in points.values() for tokens, _ in found}), minor=False)
    axes.set_xticks([], minor=True)
    return tips


def _label_losses(axes: "Axes", label: str) -> None:
    plain_ticks(axes, log_y=False)
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.compact(value)))
    axes.set_xlabel("tokens")
    axes.set_ylabel(f"{label} (nats per token)")


def _number(axes: "Axes", number: int, end: tuple[float, float], colour: str) -> None:
    """The number of a trial behind the end of its curve."""
    axes.annotate(
        f"#{number}", end, color=colour, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        annotation_clip=False,
    )  # fmt: skip
