"""Two models that generate the same, side by side: in turns where memory holds both, else one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel

from shortened_llm.config import EfficiencyConfig
from shortened_llm.evaluation.footprint import (
    footprint,
    gpu_utilisation,
    memory_growth,
    unless_out_of_memory,
    weight_bytes,
)
from shortened_llm.evaluation.generation import (
    Shape,
    TimeShares,
    Timing,
    gpus_of,
    in_turns,
    make_generation,
    shapes,
    speed_of,
    speed_up,
    time_shares,
)
from shortened_llm.logs import LOGGER
from shortened_llm.records import EfficiencyPoint, Footprint, GenerationPoint, ModelRef, Transform

PROFILED_RUNS = 5
"""Generations of the dense model behind the share of each part."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is generated."""

    prompt: torch.Tensor
    settings: EfficiencyConfig
    shortening: tuple[Transform, ...] | None
    """What was done to the dense model; None where that is not known."""
    on_run: Callable[[], None]

    def timings(self, models: Sequence[PreTrainedModel], shape: Shape, runs: int) -> list[list[Timing]]:
        """The runs of each model, in turns, after the warm-ups."""
        if self.settings.compile:
            torch.compiler.reset()  # or after some shapes their graphs are too many, and the rest runs uncompiled
        generations = [self._generation(model, shape) for model in models]
        in_turns(generations, self.settings.warmups)
        return in_turns(generations, runs)

    def shares(self, dense: PreTrainedModel, shape: Shape) -> TimeShares:
        uncompiled = self._generation(dense, shape, compiled=False)
        return time_shares(dense, uncompiled, min(PROFILED_RUNS, self.settings.runs))

    def memory(self, model: PreTrainedModel, shape: Shape) -> dict[str, Any]:
        """Peak memory and GPU utilisation, as a `GenerationPoint` has them."""
        generate, gpus = self._generation(model, shape), gpus_of(model)
        return {
            "peak_memory_bytes": weight_bytes(model) + memory_growth(generate, gpus),
            "gpu_utilisation": gpu_utilisation(generate, gpus),
        }

    def point(self, timings: Sequence[Timing], memory: dict[str, Any], shape: Shape) -> GenerationPoint:
        return GenerationPoint(**asdict(speed_of(timings, shape, self.settings.prompt_length)), **memory)

    def compared(
        self, dense: GenerationPoint, model: GenerationPoint, ratio: float, shares: TimeShares
    ) -> EfficiencyPoint:
        return EfficiencyPoint(
            dense=dense,
            model=model,
            speed_up=ratio,
            ideal_speed_up=shares.ideal_speed_up(self.shortening),
            block_share=sum(block.whole for block in shares.blocks),
            head_share=shares.head,
        )

    def _generation(self, model: PreTrainedModel, shape: Shape, **options: bool) -> Callable[[], Timing]:
        return make_generation(model, self.prompt, shape, self.settings, on_run=self.on_run, **options)


Found = tuple[Sequence[EfficiencyPoint], Sequence[Shape], Footprint, Footprint]
"""What was measured of every shape that fits; those that do not; what the dense model and the other cost."""


def both_in_turns(dense: PreTrainedModel, model: PreTrainedModel, bench: Bench) -> Found:
    def measure(shape: Shape) -> EfficiencyPoint:
        timings = bench.timings((dense, model), shape, bench.settings.runs)
        shares = bench.shares(dense, shape)
        of_dense, of_model = (
            bench.point(runs, bench.memory(one, shape), shape)
            for one, runs in zip((dense, model), timings, strict=True)
        )
        return bench.compared(of_dense, of_model, speed_up(*timings), shares)

    measured, left_out = _each_that_fits(shapes(bench.settings), measure)
    return tuple(measured.values()), left_out, footprint(dense), footprint(model)


def one_by_one(load: Callable[[ModelRef], PreTrainedModel], dense: ModelRef, model: ModelRef, bench: Bench) -> Found:
    every, runs = shapes(bench.settings), bench.settings.runs

    def alone(
        ref: ModelRef, fitting: Sequence[Shape], measure: Callable[[PreTrainedModel, Shape], T]
    ) -> tuple[dict[Shape, T], Footprint]:
        loaded = load(ref)
        found, _ = _each_that_fits(fitting, partial(measure, loaded))
        costs = footprint(loaded)
        del loaded
        if bench.settings.compile:
            torch.compiler.reset()  # its graphs hold memory
        clear_device_cache(garbage_collection=True)
        return found, costs

    def timed(number: int) -> Callable[[PreTrainedModel, Shape], list[Timing]]:
        return lambda loaded, shape: bench.timings((loaded,), shape, number)[0]

    def first(loaded: PreTrainedModel, shape: Shape) -> tuple[list[Timing], TimeShares, dict[str, Any]]:
        timings = timed(runs - runs // 2)(loaded, shape)
        return timings, bench.shares(loaded, shape), bench.memory(loaded, shape)

    before, dense_costs = alone(dense, every, first)
    own, costs = alone(
        model, tuple(before), lambda loaded, shape: (timed(runs)(loaded, shape), bench.memory(loaded, shape))
    )
    after, _ = alone(dense, tuple(own), timed(runs // 2))
    measured = []
    for shape, last in after.items():
        (early, shares, memory), (timings, own_memory) = before[shape], own[shape]
        of_dense, of_model = bench.point([*early, *last], memory, shape), bench.point(timings, own_memory, shape)
        measured.append(bench.compared(of_dense, of_model, speed_up([*early, *last], timings), shares))
    return measured, [shape for shape in every if shape not in after], dense_costs, costs


def _each_that_fits(asked: Sequence[Shape], measure: Callable[[Shape], T]) -> tuple[dict[Shape, T], list[Shape]]:
    """Every shape that fits, and those that do not.

    Lengths ascend, for a static cache never becomes shorter again, and so that a batch too large for one length is not
    tried with a longer one.
    """
    measured: dict[Shape, T] = {}
    left_out: list[Shape] = []
    for shape in asked:
        if any(shape.batch_size >= other.batch_size for other in left_out):
            left_out.append(shape)
            continue
        LOGGER.info("generating %s", shape)
        found = unless_out_of_memory(partial(measure, shape))
        if found is None:
            left_out.append(shape)
            LOGGER.warning("%s does not fit into memory: left out, with larger batches", shape)
        else:
            measured[shape] = found
    return measured, left_out
