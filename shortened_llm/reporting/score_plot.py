"""Scores by block, drawn for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shortened_llm.records import UnitScores, unit_name
from shortened_llm.reporting import formats
from shortened_llm.reporting.certainty import chances, undecided_units
from shortened_llm.reporting.plots import needs_log
from shortened_llm.reporting.style import INK, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_BLOCKS = 48
"""Number of blocks above which a plot takes the width of two."""
AXIS_TITLES = {"block": "block", "sublayer": "attention of block 0, its MLP, attention of block 1, ..."}


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


def figure_width(num_blocks: int) -> float:
    """Inches in which blocks stay apart."""
    return 4.9 if num_blocks <= MANY_BLOCKS else 9.8


def draw_scores(axes: "Axes", scores: UnitScores, colour: str) -> dict[str, str]:
    """Score by block, and what each point is, by gid. Hollow: protected; ringed: undecided; nothing: no score.

    A score outside the axis is an arrow with its value at the edge.
    """
    from matplotlib.ticker import MaxNLocator

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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(AXIS_TITLES[scores.unit])
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
