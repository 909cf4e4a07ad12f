"""Speed and memory: one table per protocol, the dense model first in each shape of input."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from shortened_llm.records import EfficiencyScore, Footprint, GenerationPoint
from shortened_llm.reporting.rows import TrialRow

GIB = 2**30
MEASURES = (
    "latency", "latency_deviation", "time_to_first_token", "throughput", "peak_memory_bytes", "gpu_utilisation",
)  # fmt: skip
"""What is measured of a model at one shape of input."""
Shape = tuple[int, int, int]
"""Batch size, prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyLine:
    """One model at one shape of input."""

    row: TrialRow | None
    """None for the dense model."""
    point: GenerationPoint
    speed_up: float | None = None
    """Dense latency / its latency, the median over the turns; None for the dense model."""
    ideal_speed_up: float | None = None
    block_share: float | None = None
    """Share of the dense model's time that its blocks take, 0 to 1; None for other models."""
    head_share: float | None = None
    """Share that its head takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyTable:
    """All models under one protocol."""

    protocol: str
    shapes: tuple[tuple[EfficiencyLine, ...], ...]
    """Lines of each shape, the smallest first."""
    footprints: tuple[tuple[TrialRow | None, Footprint], ...]
    """What each model costs; the dense one first, as None."""


def shape(point: GenerationPoint) -> Shape:
    return point.batch_size, point.prompt_tokens, point.output_tokens


def shape_name(of: Shape) -> str:
    """`batch 8, 128 tokens out`."""
    return f"batch {of[0]}, {of[2]} tokens out"


def measured_efficiency(rows: Sequence[TrialRow]) -> dict[tuple[str, str], dict[int, EfficiencyScore]]:
    """(unit, protocol) -> number of the trial -> its speed and memory. The protocol alone names the machine."""
    found: dict[tuple[str, str], dict[int, EfficiencyScore]] = {}
    for row in rows:
        if (score := row.trial.after.efficiency) is not None and score.points:
            found.setdefault((score.unit, score.protocol), {})[row.number] = score
    return found


def shapes_of(scores: Sequence[EfficiencyScore]) -> list[Shape]:
    """Every shape that any of them has, the smallest first."""
    return sorted({shape(point.model) for score in scores for point in score.points})


def lines_of(score: EfficiencyScore, row: TrialRow | None = None) -> dict[Shape, EfficiencyLine]:
    """The shapes of one model."""
    return {
        shape(one.model): EfficiencyLine(
            row=row, point=one.model, speed_up=one.speed_up, ideal_speed_up=one.ideal_speed_up
        )
        for one in score.points
    }


def dense_point(scores: Sequence[EfficiencyScore], of: Shape) -> GenerationPoint:
    """The dense model at one shape: the mean over the turns with each of the other models."""
    points = [one.dense for score in scores for one in score.points if shape(one.dense) == of]
    means: dict[str, Any] = {}
    for name in MEASURES:
        known = [value for point in points if (value := getattr(point, name)) is not None]
        means[name] = fmean(known) if known else None
    return replace(points[0], **means)


def efficiency_tables(rows: Sequence[TrialRow]) -> tuple[EfficiencyTable, ...]:
    """One table per unit and protocol; none where nothing was measured."""
    by_number = {row.number: row for row in rows}
    tables = []
    for (_, protocol), by_trial in measured_efficiency(rows).items():
        scores = list(by_trial.values())
        of_models = [lines_of(score, by_number[number]) for number, score in by_trial.items()]
        shapes = tuple(
            (_dense_line(scores, of), *(lines[of] for lines in of_models if of in lines)) for of in shapes_of(scores)
        )
        footprints = [(by_number[number], score.model) for number, score in by_trial.items()]
        every = ((None, scores[0].dense), *footprints)
        tables.append(EfficiencyTable(protocol=protocol, shapes=shapes, footprints=every))
    return tuple(tables)


def _dense_line(scores: Sequence[EfficiencyScore], of: Shape) -> EfficiencyLine:
    points = [one for score in scores for one in score.points if shape(one.dense) == of]
    return EfficiencyLine(
        row=None,
        point=dense_point(scores, of),
        block_share=fmean(one.block_share for one in points),
        head_share=fmean(one.head_share for one in points),
    )
