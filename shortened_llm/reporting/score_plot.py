"""Scores by block above the cuts they lead to: drawn for the page, and for all criteria side by side as one PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shortened_llm.records import UnitScores, unit_name
from shortened_llm.reporting import formats
from shortened_llm.reporting.certainty import chances, undecided_units
from shortened_llm.reporting.plots import needs_log
from shortened_llm.reporting.style import INK, drawing, new_figure, plain_ticks, save_png, series_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

MANY_BLOCKS = 48
"""Number of blocks above which a plot takes the width of two."""
AXIS_TITLES = {"block": "block", "sublayer": "attention of block 0, its MLP, attention of block 1, ..."}
CRITERIA_PER_LINE = 3
"""Criteria side by side in the PNG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLine:
    """The blocks that go at one cut, drawn as a line of squares."""

    name: str
    removed: tuple[int, ...]
    undecided: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreAxis:
    """Range of the score axis."""

    low: float
    high: float
    log: bool


def score_axis(scores: UnitScores) -> ScoreAxis:
    """The blocks that may be removed, with their standard errors, and what lies close by.

    A protected block far outside would flatten the differences that decide.
    """
    found = {
        block: (score, error if error is not None and math.isfinite(error) else 0.0)
        for block, (score, error) in enumerate(zip(scores.scores, _errors(scores), strict=True))
        if score is not None and math.isfinite(score)
    }
    compared = [pair for block, pair in found.items() if block not in scores.protected] or list(found.values())
    if not compared:
        return ScoreAxis(low=0.0, high=1.0, log=False)
    high = max(score + error for score, error in compared)
    if needs_log([score for score, _ in compared]):
        # An error bar that reaches zero has no end on a log axis; half the score shows that it goes on.
        low = min(max(score - error, score / 2) for score, error in compared)
        margin = (high / low) ** 0.08
        return ScoreAxis(low=low / margin, high=high * margin, log=True)
    low = min(score - error for score, error in compared)
    width = (high - low) or abs(high) or 1.0
    shown = [value for score, error in found.values() for value in (score - error, score + error)]
    if scores.dense_perplexity is not None:
        shown.append(scores.dense_perplexity)
    near = [value for value in shown if low - width / 2 <= value <= high + width / 2]
    return ScoreAxis(low=min(near) - 0.08 * width, high=max(near) + 0.08 * width, log=False)


def _errors(scores: UnitScores) -> Sequence[float | None]:
    return scores.standard_errors or (None,) * len(scores.scores)


def draw_criterion(
    figure: "Figure | SubFigure", scores: UnitScores, lines: Sequence[CutLine], colour: str
) -> dict[str, str]:
    """Score by block, and under it one line per cut; returns what each point is, by gid."""
    from matplotlib.ticker import MaxNLocator

    heights = [1.8, lines_height(lines)] if lines else [1.8]
    upper, *lower = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights).ravel()
    tips = draw_scores(upper, scores, colour)
    for axes in lower:
        draw_cuts(axes, lines, len(scores.scores), scores.protected, colour)
    upper.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    (lower or [upper])[-1].set_xlabel(AXIS_TITLES[scores.unit])
    return tips


def lines_height(lines: Sequence[CutLine]) -> float:
    """Inches."""
    return 0.2 * len(lines)


def figure_width(num_blocks: int) -> float:
    """Inches in which blocks stay apart."""
    return 4.9 if num_blocks <= MANY_BLOCKS else 9.8


def draw_scores(axes: "Axes", scores: UnitScores, colour: str) -> dict[str, str]:
    """Score by block: hollow where protected, ringed where undecided, nothing where the block has no score.

    A score outside the axis is an arrow with its value at the edge.
    """
    axis = score_axis(scores)
    undecided = undecided_units(scores)
    tips: dict[str, str] = {}
    for block, (score, error) in enumerate(zip(scores.scores, _errors(scores), strict=True)):
        if score is None or not math.isfinite(score):
            continue
        face = "none" if block in scores.protected else colour
        gid = f"block-{block}"
        tips[gid] = unit_tip(scores, block)
        if axis.low <= score <= axis.high:
            place = score
            dot = {"marker": "o", "markersize": 4.5, "zorder": 3}
            axes.plot([block], [score], mfc=face, mec=colour, gid=gid, clip_on=False, **dot)  # type: ignore[arg-type]
            if error is not None and math.isfinite(error):
                bar = [max(score - error, axis.low), score + error]
                axes.plot([block, block], bar, color=colour, linewidth=0.9, zorder=2)
        else:
            above = score > axis.high
            place, shape = (axis.high, "^") if above else (axis.low, "v")
            axes.plot([block], [place], marker=shape, markersize=5, mfc=face, mec=colour, gid=gid, clip_on=False)
            # Upright, below or above its arrow, a label stays clear of the neighbouring blocks.
            axes.annotate(
                formats.significant(score, 3),
                (block, place),
                xytext=(0, -7 if above else 7),
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="top" if above else "bottom",
                fontsize=7.5,
            )
        if block in undecided:
            axes.plot([block], [place], **RING, clip_on=False, zorder=4)  # type: ignore[arg-type]
    axes.set_ylim(axis.low, axis.high)
    plain_ticks(axes, log_y=axis.log)
    if scores.dense_perplexity is not None and axis.low <= scores.dense_perplexity <= axis.high:
        axes.axhline(scores.dense_perplexity, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "dense",
            (1, scores.dense_perplexity),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
        )
    axes.set_xlim(-0.8, len(scores.scores) - 0.2)
    axes.set_ylabel("score")
    return tips


RING = {"linestyle": "none", "marker": "o", "markersize": 9, "mfc": "none", "mec": INK, "mew": 1.1}
"""Around an undecided block."""


def unit_tip(scores: UnitScores, block: int) -> str:
    """What the pointer shows over a unit that has a score."""
    error = _errors(scores)[block]
    tip = f"{unit_name(scores.unit, block)}: {formats.significant(scores.scores[block])}"
    if error is not None:
        tip += f" ± {formats.significant(error, 2)}"
    return "; ".join(part for part in (tip, chances(scores, block)) if part)


def draw_cuts(axes: "Axes", lines: Sequence[CutLine], num_blocks: int, protected: Sequence[int], colour: str) -> None:
    """One line of squares per cut: filled where a block is removed, ringed where undecided, crossed where protected."""
    for place, line in enumerate(lines):
        axes.plot(range(num_blocks), [place] * num_blocks, "s", markersize=4, mfc="none", mec=INK, mew=0.4, alpha=0.6)
        for blocks, mark in (
            (line.removed, {"marker": "s", "markersize": 5.5, "mfc": colour, "mec": colour}),
            (line.undecided, RING),
            (protected, {"marker": "x", "markersize": 3.5, "color": INK, "mew": 0.7}),
        ):
            axes.plot(list(blocks), [place] * len(blocks), **{"linestyle": "none", **mark})  # type: ignore[arg-type]
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(left=False)
    axes.spines[["left"]].set_visible(False)


def save_score_plot(unit_scores: Sequence[UnitScores], path: Path) -> None:
    """All criteria side by side in one PNG.

    Args:
        unit_scores: at least one.

    Raises:
        OSError: where the file cannot be written.
    """
    with drawing("png"):
        save_png(score_figure(unit_scores), path)


def score_figure(unit_scores: Sequence[UnitScores]) -> "Figure":
    """One part per criterion, headed with its name."""
    # Cuts are requested of all criteria alike, also of those without resamples.
    counts = sorted({cut.count for scores in unit_scores for cut in scores.cuts or ()})
    columns = min(CRITERIA_PER_LINE, len(unit_scores))
    lines = -(-len(unit_scores) // columns)
    legend = _legend(unit_scores)
    entries_per_line = 2 * columns
    width = figure_width(max(len(scores.scores) for scores in unit_scores))
    height = (2.4 + 0.2 * len(counts)) * lines + 0.2 * (1 - (-len(legend) // entries_per_line))
    figure = new_figure(width * columns, height)
    grid = figure.add_gridspec(lines, columns)
    styles = series_styles([(scores.ranking,) for scores in unit_scores])
    for index, scores in enumerate(unit_scores):
        part = figure.add_subfigure(grid[index])
        part.suptitle(formats.first_line(scores.ranking, 60), fontsize=10)
        draw_criterion(part, scores, _requested(scores, counts), styles[(scores.ranking,)].colour)
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=entries_per_line, fontsize=8)
    return figure


def _requested(scores: UnitScores, counts: Sequence[int]) -> list[CutLine]:
    undecided = {cut.count: cut.undecided for cut in scores.cuts or ()}
    return [
        CutLine(name=f"{count} removed", removed=scores.removed(count), undecided=undecided.get(count, ()))
        for count in counts
    ]


def _legend(unit_scores: Sequence[UnitScores]) -> dict[str, "Line2D"]:
    from matplotlib.lines import Line2D

    legend = {
        "may be removed": Line2D([], [], linestyle="none", marker="o", markersize=4.5, color=INK),
        "protected": Line2D([], [], linestyle="none", marker="o", markersize=4.5, mfc="none", color=INK),
        "± one standard error": Line2D([], [], linewidth=0.9, color=INK),
    }
    if any(scores.cuts for scores in unit_scores):
        legend["undecided: within the calibration noise"] = Line2D([], [], **RING)  # type: ignore[arg-type]
        legend["removed"] = Line2D([], [], linestyle="none", marker="s", markersize=5.5, color=INK)
    return legend
