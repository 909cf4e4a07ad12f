"""Speed and memory: one table per protocol, the dense model first in each shape of input."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from shortened_llm.records import EfficiencyScore, GenerationPoint
from shortened_llm.reporting.rows import TrialRow

GIB = 2**30
MEASURES = (
    "latency", "latency_deviation", "time_to_first_token", "throughput", "peak_memory_bytes", "gpu_utilisation",
)  # fmt: skip
"""What is measured of a model at one shape of input."""
FOOTPRINT = ("weight_bytes", "kv_bytes_per_token", "flops_per_token")
"""What a model weighs, whatever the shape of input."""
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
    footprints: tuple[tuple[TrialRow | None, dict[str, float]], ...]
    """Values by the names of `FOOTPRINT` for each model; the dense one first, as None."""


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
    return sorted({shape(point) for score in scores for point in score.points})


def lines_of(score: EfficiencyScore, row: TrialRow | None = None) -> dict[Shape, EfficiencyLine]:
    """The shapes of one model."""
    return {
        shape(point): EfficiencyLine(row=row, point=point, speed_up=measured, ideal_speed_up=ideal)
        for point, measured, ideal in zip(score.points, score.speed_ups, score.ideal_speed_ups, strict=True)
    }


def dense_point(scores: Sequence[EfficiencyScore], of: Shape) -> GenerationPoint:
    """The dense model at one shape: the mean over the turns with each of the other models."""
    points = [point for score in scores for point in score.dense_points if shape(point) == of]
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
        dense = {name: getattr(scores[0], f"dense_{name}") for name in FOOTPRINT}
        models = [
            (by_number[number], {name: getattr(score, name) for name in FOOTPRINT})
            for number, score in by_trial.items()
        ]
        tables.append(EfficiencyTable(protocol=protocol, shapes=shapes, footprints=((None, dense), *models)))
    return tuple(tables)


def _dense_line(scores: Sequence[EfficiencyScore], of: Shape) -> EfficiencyLine:
    places = [(score, index) for score in scores for index, point in enumerate(score.points) if shape(point) == of]
    return EfficiencyLine(
        row=None,
        point=dense_point(scores, of),
        block_share=fmean(score.block_shares[index] for score, index in places),
        head_share=fmean(score.head_shares[index] for score, index in places),
    )
