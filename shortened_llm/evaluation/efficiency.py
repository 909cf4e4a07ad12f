"""What a model costs to run, beside the dense model: speed, memory, arithmetic."""

from collections.abc import Callable, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.config import EfficiencyConfig
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation.footprint import free_memory
from shortened_llm.evaluation.generation import Shape, only_greedy, prompt_tokens
from shortened_llm.evaluation.side_by_side import Bench, both_in_turns, one_by_one
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model, loaded_bytes
from shortened_llm.records import EfficiencyScore, ModelRef

STAGE_VERSION = 4
ALIGNMENT = 64
ROOM = 0.8
"""Share of the free memory that the weights of both models may take: caches and activations need the rest."""


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
    bench = Bench(prompt=prompt, settings=settings, shortening=model.shortening, on_run=on_run)

    def load(ref: ModelRef) -> PreTrainedModel:
        return only_greedy(aligned(load_model(ref, dtype, device=device, num_gpus=num_gpus)))

    together = sum(loaded_bytes(ref, dtype) for ref in (dense, model)) <= ROOM * free_memory(device, num_gpus)
    found = both_in_turns(load(dense), load(model), bench) if together else one_by_one(load, dense, model, bench)
    points, left_out, of_dense, of_model = found
    return EfficiencyScore(
        unit="",  # set by `store_score`
        protocol=protocol(settings, dtype, torch.device(device), left_out, num_gpus=num_gpus, together=together),
        points=tuple(points),
        dense=of_dense,
        model=of_model,
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
