"""What a model costs to run, beside the dense model: speed, memory, arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.config import EfficiencyConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.footprint import (
    free_memory,
    gpu_utilisation,
    kv_bytes_per_token,
    memory_growth,
    unless_out_of_memory,
    weight_bytes,
)
from shortened_llm.evaluation.generation import (
    Shape,
    TimeShares,
    Timing,
    in_turns,
    make_generation,
    only_greedy,
    prompt_tokens,
    shapes,
    speed_of,
    speed_up,
    time_shares,
)
from shortened_llm.logs import LOGGER
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.flops import forward_flops
from shortened_llm.models.load import load_model, loaded_bytes
from shortened_llm.records import EfficiencyScore, GenerationPoint, ModelRef

STAGE_VERSION = 3
ALIGNMENT = 64
ROOM = 0.8
"""Share of the free memory that the weights of both models may take: caches and activations need the rest."""
PROFILED_RUNS = 5
"""Generations of the dense model behind the share of each part."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Everything about one shape."""

    dense: GenerationPoint
    model: GenerationPoint
    speed_up: float
    """Median over the turns."""
    shares: TimeShares
    """Shares of the dense model's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costs:
    """What a model costs in any shape."""

    weight_bytes: int
    kv_bytes_per_token: int
    flops_per_token: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Costs":
        return cls(
            weight_bytes=weight_bytes(model),
            kv_bytes_per_token=kv_bytes_per_token(model),
            flops_per_token=forward_flops(model),
        )


def measure_efficiency(
    dense: ModelRef,
    model: ModelRef,
    settings: EfficiencyConfig,
    *,
    dtype: str,
    device: str,
    num_gpus: int = 1,
    on_run: Callable[[], None] = lambda: None,
) -> EfficiencyScore:
    """Generate with both models in turns, in one process, so that whatever drifts or disturbs meets both.

    Both are in memory at once. For each shape come the warm-ups and the timed runs; only then, each in runs of its own,
    the dense model's parts under hooks, and memory and GPU utilisation. Where memory holds only one of them, the dense
    model is timed before the other and again after it, each in half of its runs.

    A shape that does not fit into memory is left out for both models, and with it the larger batches. On CPU that is
    noticed only where an allocation fails: a kernel that promises more memory than there is ends the process instead.

    Args:
        num_gpus: over which a model is spread.
        on_run: called now and then, not while something is timed.
    """
    prompt = prompt_tokens(load_tokenizer(model_directory(dense)), settings.prompt_length)
    bench = _Bench(prompt=prompt, settings=settings, on_run=on_run)

    def load(ref: ModelRef) -> PreTrainedModel:
        return only_greedy(aligned(load_model(ref, dtype, device=device, num_gpus=num_gpus)))

    together = sum(loaded_bytes(ref, dtype) for ref in (dense, model)) <= ROOM * free_memory(device, num_gpus)
    found = _in_turns(load(dense), load(model), bench) if together else _one_by_one(load, dense, model, bench)
    measured, left_out, dense_costs, costs = found
    return EfficiencyScore(
        unit="",  # set by `store_score`
        protocol=protocol(settings, dtype, torch.device(device), left_out, num_gpus=num_gpus, together=together),
        points=tuple(one.model for one in measured),
        dense_points=tuple(one.dense for one in measured),
        weight_bytes=costs.weight_bytes,
        dense_weight_bytes=dense_costs.weight_bytes,
        kv_bytes_per_token=costs.kv_bytes_per_token,
        dense_kv_bytes_per_token=dense_costs.kv_bytes_per_token,
        flops_per_token=costs.flops_per_token,
        dense_flops_per_token=dense_costs.flops_per_token,
        block_shares=tuple(sum(one.shares.blocks) for one in measured),
        head_shares=tuple(one.shares.head for one in measured),
        ideal_speed_ups=tuple(one.shares.ideal_speed_up(model.shortening) for one in measured),
        speed_ups=tuple(one.speed_up for one in measured),
    )


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """The model with all weights at multiples of 64 bytes, where torch itself puts them.

    Those of a file lie where its header happens to end, and a CPU reads vectors across cache lines 3 to 5 % slower: as
    much as a block or two of a small model.
    """
    for weight in model.parameters():
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()
    return model


def check_lengths(config: PretrainedConfig, settings: EfficiencyConfig) -> None:
    """Raises `BadInputError` where a generation is longer than the model's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    longest = settings.prompt_length + max(settings.output_lengths)
    if positions is not None and longest > positions:
        raise BadInputError(
            f"evaluation.efficiency.output_lengths: {max(settings.output_lengths)} new tokens behind a prompt of "
            f"{settings.prompt_length} are {longest}; the model has {positions} positions"
        )


def protocol(
    settings: EfficiencyConfig,
    dtype: str,
    device: torch.device,
    left_out: Sequence[Shape] = (),
    *,
    num_gpus: int = 1,
    together: bool = True,
) -> str:
    """The protocol in words."""
    gpus = f"{num_gpus} x " if num_gpus > 1 else ""
    order = "in turns with the dense model" if together else "one model in memory, the dense one before and after"
    options = [
        "greedy generate of transformers",
        f"{gpus}{torch.cuda.get_device_name(device)}"
        if device.type == "cuda"
        else f"CPU with {torch.get_num_threads()} threads",
        dtype,
        f"the same prompt of {settings.prompt_length} tokens in each sequence",
        f"{settings.runs} runs after {settings.warmups} warm-ups, {order}",
        f"{'static' if settings.static_cache else 'dynamic'} cache",
    ]
    if settings.compile:
        options.append("compiled decoding; shares of time and ideal speed-up without compiling")
    if left_out:
        options.append(f"left out for want of memory: {', '.join(map(str, left_out))}")
    return ", ".join(options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What is generated."""

    prompt: torch.Tensor
    settings: EfficiencyConfig
    on_run: Callable[[], None]

    def timings(self, models: Sequence[PreTrainedModel], shape: Shape, runs: int) -> list[list[Timing]]:
        """Of each model, in turns, after the warm-ups."""
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
        generate = self._generation(model, shape)
        return {
            "peak_memory_bytes": weight_bytes(model) + memory_growth(generate, model.device),
            "gpu_utilisation": gpu_utilisation(generate, model.device),
        }

    def point(self, timings: Sequence[Timing], memory: dict[str, Any], shape: Shape) -> GenerationPoint:
        return GenerationPoint(**asdict(speed_of(timings, shape, self.settings.prompt_length)), **memory)

    def _generation(self, model: PreTrainedModel, shape: Shape, **options: bool) -> Callable[[], Timing]:
        return make_generation(model, self.prompt, shape, self.settings, on_run=self.on_run, **options)


Found = tuple[Sequence[_Measured], Sequence[Shape], _Costs, _Costs]
"""Of every shape that fits; those that do not; what the dense model and the other cost."""


def _in_turns(dense: PreTrainedModel, model: PreTrainedModel, bench: _Bench) -> Found:
    def measure(shape: Shape) -> _Measured:
        timings = bench.timings((dense, model), shape, bench.settings.runs)
        shares = bench.shares(dense, shape)
        of_dense, of_model = (
            bench.point(runs, bench.memory(one, shape), shape)
            for one, runs in zip((dense, model), timings, strict=True)
        )
        return _Measured(dense=of_dense, model=of_model, speed_up=speed_up(*timings), shares=shares)

    measured, left_out = _each_that_fits(shapes(bench.settings), measure)
    return tuple(measured.values()), left_out, _Costs.of(dense), _Costs.of(model)


def _one_by_one(load: Callable[[ModelRef], PreTrainedModel], dense: ModelRef, model: ModelRef, bench: _Bench) -> Found:
    every, runs = shapes(bench.settings), bench.settings.runs

    def alone(
        ref: ModelRef, fitting: Sequence[Shape], measure: Callable[[PreTrainedModel, Shape], T]
    ) -> tuple[dict[Shape, T], _Costs]:
        loaded = load(ref)
        found, _ = _each_that_fits(fitting, partial(measure, loaded))
        costs = _Costs.of(loaded)
        del loaded
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
        measured.append(
            _Measured(
                dense=bench.point([*early, *last], memory, shape),
                model=bench.point(timings, own_memory, shape),
                speed_up=speed_up([*early, *last], timings),
                shares=shares,
            )
        )
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
