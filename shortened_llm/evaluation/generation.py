"""Timed generations: a fixed prompt, a forced number of new tokens; and where their time goes."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    CompileConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from shortened_llm.config import EfficiencyConfig
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.parts import parts_of_blocks
from shortened_llm.models.transforms import times_left
from shortened_llm.models.transforms.kind import BlockTime
from shortened_llm.records import GenerationSpeed, Transform

T = TypeVar("T")

PROMPT = "The old lighthouse keeper walked down to the harbour early every morning because he wanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One size of generation."""

    batch_size: int
    output_tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch_size} x {self.output_tokens} new tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one generation took, in seconds."""

    latency: float
    time_to_first_token: float


def shapes(settings: EfficiencyConfig) -> list[Shape]:
    """Every size, by output length, then batch size, ascending."""
    lengths, sizes = sorted(set(settings.output_lengths)), sorted(set(settings.batch_sizes))
    return [Shape(batch_size=size, output_tokens=length) for length in lengths for size in sizes]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
    """Token ids of `PROMPT`, repeated or cut to `length`, [1, length], with the special tokens that the tokenizer puts
    in front."""
    ids = tokenizer(PROMPT)["input_ids"]
    return torch.tensor([(ids * length)[:length]])


def only_greedy(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, with nothing left of its generation settings but the end-of-text tokens.

    They may sample, or penalise repetition, and transformers merges them into what a call asks for.
    """
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model


def make_generation(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    shape: Shape,
    settings: EfficiencyConfig,
    *,
    compiled: bool | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> Callable[[], Timing]:
    """A greedy generation, ready to be repeated.

    The time to the first token is taken inside the same generation, by a stopping criterion that never stops it: one
    more logical OR of [batch] booleans per token. transformers waits for the device at the same place in every step, so
    waiting there once more costs nothing.

    Args:
        model: from `only_greedy`.
        prompt: [1, prompt]; every sequence of the batch begins with it.
        compiled: as in `settings` unless given.
        on_run: called before each generation.
    """
    input_ids = prompt.to(model.device).repeat(shape.batch_size, 1)
    mask = torch.ones_like(input_ids)
    config = GenerationConfig(
        do_sample=False,
        min_new_tokens=shape.output_tokens,
        max_new_tokens=shape.output_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,  # never generated: no sequence ends early, and the prompts have one length
        cache_implementation="static" if settings.static_cache else None,
        # On a GPU, transformers compiles for every static cache unless told not to.
        disable_compile=not (settings.compile if compiled is None else compiled),
        compile_config=CompileConfig() if settings.compile else None,
    )
    if settings.compile:
        config.compile_config._compile_all_devices = True  # or transformers compiles on GPUs only

    @torch.inference_mode()
    def generate() -> Timing:
        on_run()
        first_token = _FirstToken(input_ids)
        synchronise(model.device)
        started = time.perf_counter()
        tokens = model.generate(
            input_ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([first_token]),
        )
        synchronise(model.device)
        latency = time.perf_counter() - started
        assert tokens.shape == (shape.batch_size, input_ids.shape[1] + shape.output_tokens), tokens.shape
        return Timing(latency=latency, time_to_first_token=first_token.time - started)

    return generate


def in_turns(generations: Sequence[Callable[[], T]], turns: int) -> list[list[T]]:
    """Each of them `turns` times, one after another, in every other turn backwards; the results of each."""
    results: list[list[T]] = [[] for _ in generations]
    for turn in range(turns):
        order = range(len(generations))
        for index in order if turn % 2 == 0 else reversed(order):
            results[index].append(generations[index]())
    return results


def speed_of(runs: Sequence[Timing], shape: Shape, prompt_length: int) -> GenerationSpeed:
    """Means over runs of one shape."""
    latencies = [run.latency for run in runs]
    return GenerationSpeed(
        batch_size=shape.batch_size,
        prompt_tokens=prompt_length,
        output_tokens=shape.output_tokens,
        latency=mean(latencies),
        latency_deviation=stdev(latencies) if len(latencies) > 1 else 0.0,
        time_to_first_token=mean(run.time_to_first_token for run in runs),
        throughput=shape.batch_size * shape.output_tokens / mean(latencies),
    )


def speed_up(dense: Sequence[Timing], own: Sequence[Timing]) -> float:
    """The median ratio of latencies in turns, so that what disturbs a run of one model does not count."""
    return median(of_dense.latency / of_own.latency for of_dense, of_own in zip(dense, own, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeShares:
    """Shares of a generation's latency, 0 to 1; embeddings, final norm and the loop around the model are the rest."""

    blocks: tuple[BlockTime, ...]
    """In model order."""
    head: float

    def ideal_speed_up(self, shortening: Sequence[Transform] | None) -> float | None:
        """Dense time / (dense time less what was removed of it), if nothing but that went away.

        Args:
            shortening: what was done to the dense model.

        Returns:
            None where that is not known, or does not tell what it saves.
        """
        if shortening is None:
            return None
        left = times_left(self.blocks, shortening)
        if left is None:
            return None
        return 1 / (1 - sum(time.whole for time in self.blocks) + sum(time.whole for time in left))


def time_shares(model: PreTrainedModel, generate: Callable[[], Timing], runs: int) -> TimeShares:
    """Median over `runs` generations by `model`, with a hook before and behind each part, which slows them.

    On a GPU the hooks record events on its stream and wait for nothing: a part's time is that between its events, also
    where the GPU waits for the launch of its kernels. Where a model lies on several GPUs, which wait for one another,
    they wait for the part instead.
    """
    gpus = gpus_of(model)
    blocks, head = find_blocks(model), model.get_output_embeddings()
    sublayers = parts_of_blocks(blocks)
    modules: list[nn.Module] = [*blocks, *(part for parts in sublayers for part in parts.values()), head]
    found: dict[nn.Module, list[float]] = {module: [] for module in modules}
    with ExitStack() as hooks:
        watches = {module: _Watch(module, gpus, hooks) for module in modules}
        for _ in range(runs):
            latency = generate().latency
            for module, watch in watches.items():
                found[module].append(watch.take_seconds() / latency)
    times = tuple(
        BlockTime(whole=median(found[block]), parts={name: median(found[part]) for name, part in parts.items()})
        for block, parts in zip(blocks, sublayers, strict=True)
    )
    return TimeShares(blocks=times, head=median(found[head]))


def gpus_of(model: nn.Module) -> list[torch.device]:
    """The GPUs that a model lies on; none where it is on the CPU."""
    return sorted({weight.device for weight in model.parameters() if weight.device.type == "cuda"}, key=str)


def synchronise(device: torch.device) -> None:
    """Wait for what was launched on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Watch:
    """Notes when a module begins and ends, each time it runs."""

    def __init__(self, module: nn.Module, gpus: Sequence[torch.device], hooks: ExitStack) -> None:
        self._gpus, self._has_events = gpus, len(gpus) == 1
        self._moments: list[Any] = []
        """Beginnings and ends by turns: seconds, or events on the GPU's stream."""
        hooks.callback(module.register_forward_pre_hook(self._note).remove)
        hooks.callback(module.register_forward_hook(self._note).remove)

    def _note(self, *_: object) -> None:
        if not self._has_events:
            for gpu in self._gpus:
                torch.cuda.synchronize(gpu)
            self._moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._moments.append(event)

    def take_seconds(self) -> float:
        """Seconds of all runs since the last call."""
        moments, self._moments = self._moments, []
        runs = zip(moments[::2], moments[1::2], strict=True)
        if not self._has_events:
            return sum(end - start for start, end in runs)
        synchronise(self._gpus[0])
        return sum(start.elapsed_time(end) for start, end in runs) / 1000


class _FirstToken(StoppingCriteria):
    """Notes when the first token of each sequence is chosen; never stops."""

    def __init__(self, input_ids: torch.Tensor) -> None:
        self.time = 0.0
        self._go_on = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        if not self.time:
            synchronise(input_ids.device)
            self.time = time.perf_counter()
        return self._go_on
