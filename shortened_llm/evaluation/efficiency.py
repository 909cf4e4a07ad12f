"""What a model costs to run, beside the dense model: speed, memory, arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.config import EfficiencyConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.footprint import (
    gpu_utilisation,
    kv_bytes_per_token,
    memory_growth,
    unless_out_of_memory,
    weight_bytes,
)
from shortened_llm.evaluation.generation import (
    Shape,
    TimeShares,
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
from shortened_llm.models.load import load_model
from shortened_llm.records import EfficiencyScore, GenerationPoint, ModelRef

STAGE_VERSION = 3
ALIGNMENT = 64
PROFILED_RUNS = 5
"""Generations of the dense model behind the share of each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Everything about one shape."""

    dense: GenerationPoint
    model: GenerationPoint
    speed_up: float
    """Median over the turns."""
    shares: TimeShares
    """Shares of the dense model's time."""


def measure_efficiency(
    dense: ModelRef,
    model: ModelRef,
    settings: EfficiencyConfig,
    *,
    dtype: str,
    device: str,
    on_run: Callable[[], None] = lambda: None,
) -> EfficiencyScore:
    """Generate with both models in turns, in one process, so that whatever drifts or disturbs meets both.

    Both are in memory at once. For each shape come the warm-ups and the timed runs; only then, each in runs of its own,
    the dense model's parts under hooks, and memory and GPU utilisation. A shape that does not
    fit into memory is left out for both models, and with it the larger batches. On CPU that is noticed only where an
    allocation fails: a kernel that promises more memory than there is ends the process instead.

    Args:
        on_run: called now and then, not while something is timed.
    """
    prompt = prompt_tokens(load_tokenizer(model_directory(dense)), settings.prompt_length)
    models = [only_greedy(aligned(load_model(ref, dtype, device=device))) for ref in (dense, model)]
    measured, left_out = _measure_shapes(models, prompt, settings, on_run)
    dense_model, own_model = models
    return EfficiencyScore(
        unit="",  # set by `store_score`
        protocol=protocol(settings, dtype, models[0].device, left_out),
        points=tuple(one.model for one in measured),
        dense_points=tuple(one.dense for one in measured),
        weight_bytes=weight_bytes(own_model),
        dense_weight_bytes=weight_bytes(dense_model),
        kv_bytes_per_token=kv_bytes_per_token(own_model),
        dense_kv_bytes_per_token=kv_bytes_per_token(dense_model),
        flops_per_token=forward_flops(own_model),
        dense_flops_per_token=forward_flops(dense_model),
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


def protocol(settings: EfficiencyConfig, dtype: str, device: torch.device, left_out: Sequence[Shape] = ()) -> str:
    """The protocol in words."""
    on_gpu = device.type == "cuda"
    options = [
        "greedy generate of transformers",
        torch.cuda.get_device_name(device) if on_gpu else f"CPU with {torch.get_num_threads()} threads",
        dtype,
        f"the same prompt of {settings.prompt_length} tokens in each sequence",
        f"{settings.runs} runs after {settings.warmups} warm-ups, in turns with the dense model",
        f"{'static' if settings.static_cache else 'dynamic'} cache",
    ]
    if settings.compile:
        options.append("compiled decoding; shares of time and ideal speed-up without compiling")
    if left_out:
        options.append(f"left out for want of memory: {', '.join(map(str, left_out))}")
    return ", ".join(options)


def _measure_shapes(
    models: Sequence[PreTrainedModel],
    prompt: torch.Tensor,
    settings: EfficiencyConfig,
    on_run: Callable[[], None],
) -> tuple[list[_Measured], list[Shape]]:
    """Every shape that fits, and those that do not.

    Lengths ascend, for a static cache never becomes shorter again, and so that a batch too large for one length is not
    tried with a longer one.
    """
    measured: list[_Measured] = []
    left_out: list[Shape] = []
    for shape in shapes(settings):
        if any(shape.batch_size >= other.batch_size for other in left_out):
            left_out.append(shape)
            continue
        LOGGER.info("generating %s", shape)
        found = unless_out_of_memory(partial(_measure, models, prompt, shape, settings, on_run))
        if found is None:
            left_out.append(shape)
            LOGGER.warning("%s does not fit into memory: left out, with larger batches", shape)
        else:
            measured.append(found)
    return measured, left_out


def _measure(
    models: Sequence[PreTrainedModel],
    prompt: torch.Tensor,
    shape: Shape,
    settings: EfficiencyConfig,
    on_run: Callable[[], None],
) -> _Measured:
    if settings.compile:
        torch.compiler.reset()  # or after some shapes their graphs are too many, and the rest runs uncompiled
    generations = [make_generation(model, prompt, shape, settings, on_run=on_run) for model in models]
    in_turns(generations, settings.warmups)
    timings = in_turns(generations, settings.runs)
    uncompiled = make_generation(models[0], prompt, shape, settings, compiled=False, on_run=on_run)
    shares = time_shares(models[0], uncompiled, min(PROFILED_RUNS, settings.runs))
    dense, model = (
        GenerationPoint(
            **asdict(speed_of(runs, shape, settings.prompt_length)),
            peak_memory_bytes=weight_bytes(model) + memory_growth(generate, model.device),
            gpu_utilisation=gpu_utilisation(generate, model.device),
        )
        for model, generate, runs in zip(models, generations, timings, strict=True)
    )
    return _Measured(dense=dense, model=model, speed_up=speed_up(*timings), shares=shares)
