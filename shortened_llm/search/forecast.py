"""What a whole search costs before it runs, from its configuration and the shape of its model."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shortened_llm.config import ExperimentConfig, ResourcesConfig, WeightPruning, WidthPruning
from shortened_llm.errors import BadInputError
from shortened_llm.models.axes import widths_of
from shortened_llm.models.gpus import Gpu, gpu_of
from shortened_llm.pruning.target import Request
from shortened_llm.pruning.width import typical
from shortened_llm.records import ModelSize, Recipe, Target, Transform, num_units, removal
from shortened_llm.retraining.launch import CHECKPOINTS_KEPT
from shortened_llm.retraining.recipe import chains
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.scoring.job import narrowing_of
from shortened_llm.search.cluster.capacity import ACCELERATOR_TYPE, Capacity
from shortened_llm.search.estimate import (
    ANY,
    ASSUMED_UTILISATION,
    Estimate,
    Shapes,
    Work,
    estimate,
    measured_speeds,
    run_work,
)
from shortened_llm.search.memory import GIB, ProcessMemory, evaluator_memory, scorer_memory, worker_memory
from shortened_llm.search.preflight_settings import ModelFacts
from shortened_llm.search.rounds import divided, steps_to
from shortened_llm.search.space import shortened
from shortened_llm.search.stored.experiment import read_experiment
from shortened_llm.search.strategies.rungs import REDUCTION, most_promoted
from shortened_llm.storage.store import Store

BYTES_OF_TRAINED = 12
"""Bytes of a trained parameter in a checkpoint: float32 and AdamW's two moments."""


NOTHING = Estimate(seconds=0.0, accelerator_hours=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """FLOP/s of an accelerator."""

    of: Mapping[str, float]
    """By method; see `estimate.estimate`. Empty where nothing is known."""
    source: str
    """Where they come from, in words."""
    is_measured: bool = False
    """Whether trials of the experiment have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RungForecast:
    """The trials of one rung, or of a search without rungs."""

    share: float
    """Share of the token budget."""
    trials: int
    tokens: int
    """New ones, over all trials, padding included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a search will cost; None: not known. Only training is counted: no scoring, evaluation and start-up."""

    max_trials: int
    """Trials where no two rankings choose the same units: equal plans are merged once scores are known."""
    rungs: tuple[RungForecast, ...]
    accelerator_hours: float | None
    hours: float | None
    """Wall time, with as many trials at a time as are allowed."""
    cheapest: Estimate
    """The trial that costs least."""
    model_bytes: float
    """Exported models; they stay."""
    checkpoint_bytes: float
    """Checkpoints that lie in the storage at a time, at most."""
    memory: ProcessMemory | None
    """A worker of the method that takes most; None where nothing is trained."""
    evaluator: ProcessMemory
    scorer: ProcessMemory
    gpu_memory: float | None
    """Bytes of each GPU."""
    speeds: Speeds
    notes: tuple[str, ...]
    """What is not counted."""

    @property
    def tokens(self) -> int:
        return sum(rung.tokens for rung in self.rungs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """Candidates, or controls, that cost the same."""

    count: int
    shape: tuple[Transform, ...]
    """The model that comes out in the end."""
    runs: tuple[tuple[tuple[Transform, ...], Recipe], ...]
    """Those on the corpus, each with the shape that it trains; which units are left makes no difference here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """Some of them at one rung."""

    of: _Alike
    share: float
    number: float
    """How many, on average."""
    work: tuple[Work, ...]
    """What one of them trains."""
    cost: Estimate


def forecast_search(config: ExperimentConfig, facts: ModelFacts, store: Store, capacity: Capacity) -> Forecast:
    """Add up the trials of the search, where no two rankings choose the same blocks and no scores are tied."""
    shapes = Shapes(facts.model_config, config.model.dtype)
    speeds = known_speeds(config, shapes, store, capacity)
    candidates, controls = _candidates(config, facts), _controls(config, facts)
    rungs = config.search.rungs or (1.0,)
    sampled = config.search.trials and config.search.trials / len(candidates)
    expected = [one for alike in candidates for one in _climb(alike, rungs, shapes, speeds, config, sampled)]
    expected += _climb(controls, (1.0,), shapes, speeds, config)
    trained = [one for one in expected if one.work]
    seconds = sum(one.number * (one.cost.seconds or 0.0) for one in trained)
    longest = max((sum(o.cost.seconds or 0.0 for o in trained if o.of is one.of) for one in trained), default=0.0)
    is_known = all(one.cost.seconds is not None for one in trained)
    memory = accelerator_memory(config.resources, capacity)
    number = sum(one.count for group in candidates for one in group)
    if config.search.trials is not None:
        number = config.search.trials if config.ranges else min(config.search.trials, number)
    return Forecast(
        max_trials=number + sum(one.count for one in controls),
        rungs=tuple(_rung(share, [one for one in expected if one.share == share]) for share in rungs),
        accelerator_hours=seconds * config.resources.accelerators / 3600 if is_known else None,
        hours=max(seconds / config.search.max_concurrent_trials, longest) / 3600 if is_known else None,
        cheapest=min((one.cost for one in trained), key=lambda cost: cost.seconds or 0.0, default=NOTHING),
        model_bytes=sum(one.number * facts.size.after(one.of.shape).num_bytes for one in trained),
        checkpoint_bytes=_checkpoint_bytes(config, trained, shapes),
        memory=_memory(config, trained, shapes, memory, facts.size),
        evaluator=evaluator_memory(shapes.dense, config, memory=memory),
        scorer=scorer_memory(shapes.dense, config, memory=memory),
        gpu_memory=memory,
        speeds=speeds,
        notes=_notes(config),
    )


def known_speeds(config: ExperimentConfig, shapes: Shapes, store: Store, capacity: Capacity) -> Speeds:
    """FLOP/s of an accelerator: by the trials of this experiment that have ended, or declared, or by its name."""
    resources, assumed = config.resources, f"an assumed {ASSUMED_UTILISATION:.0%} of"
    try:
        trials = read_experiment(store.experiment_url(config.experiment)).trials
    except BadInputError:  # it is new
        trials = ()
    if measured := measured_speeds([(one.spec, one.result) for one in trials if one.result], shapes):
        return Speeds(
            of=measured, source=f"{measured[ANY]:.3g} FLOP/s measured in the trials that have ended", is_measured=True
        )
    peak, named = resources.accelerator_flops, "resources.accelerator_flops"
    if peak is None and resources.gpus_per_worker and config.model.dtype == "bfloat16":
        gpus = _gpus_of(capacity)
        peak = min((gpu.peak_flops for gpu in gpus.values() if gpu), default=None)
        named = f"the peak of {', '.join(gpus)}"
    if peak is None:
        return Speeds(of={}, source="not known before the first trial has ended; give resources.accelerator_flops")
    return Speeds(of={ANY: ASSUMED_UTILISATION * peak}, source=f"{assumed} {named}, {peak:.3g} FLOP/s")


def accelerator_memory(resources: ResourcesConfig, capacity: Capacity) -> float | None:
    """Bytes of a GPU: as declared, of this machine's where it does the work, or by the names of the cluster's the most
    that one has; None where not known, as of nodes that are yet to start."""
    if resources.accelerator_memory_gib is not None:
        return resources.accelerator_memory_gib * GIB
    if not os.environ.get("RAY_ADDRESS") and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    sizes = [gpu.memory_gib if gpu else None for gpu in _gpus_of(capacity).values()]
    if resources.node_groups or not sizes or None in sizes:
        return None
    return max(size for size in sizes if size is not None) * GIB


def _gpus_of(capacity: Capacity) -> dict[str, Gpu | None]:
    """The kinds of GPUs of a cluster, by the names that Ray gives them."""
    names = {node.labels[ACCELERATOR_TYPE] for node in capacity.nodes if ACCELERATOR_TYPE in node.labels}
    return {name: gpu_of(name) for name in sorted(names)}


def _candidates(config: ExperimentConfig, facts: ModelFacts) -> list[list[_Alike]]:
    """Those of each target."""
    by_target: dict[Target, list[Request]] = {}
    for request in facts.requests:
        by_target.setdefault(request.target, []).append(request)
    return [
        [
            _alike(config, facts, request, chain, config.num_rankings(request.unit), rounds)
            for request in of_target
            for method in config.retraining.methods
            for chain in chains(config.retraining, method, config.retraining.budget(request.target.ratio), None)
            for rounds in config.retraining.rounds(method, config.search.rounds)
        ]
        for of_target in by_target.values()
    ]


def _controls(config: ExperimentConfig, facts: ModelFacts) -> list[_Alike]:
    retraining = config.retraining
    of_targets = [(one, retraining.budget(one.target.ratio)) for one in facts.requests]
    found = []
    for control in config.search.controls:
        method = "scratch" if control == "scratch" else "cpt"
        for asked, budget in [(None, budget) for budget in retraining.budgets] if control == "dense" else of_targets:
            found += [_alike(config, facts, asked, chain, 1) for chain in chains(retraining, method, budget, None)]
    return found


def _alike(
    config: ExperimentConfig,
    facts: ModelFacts,
    request: Request | None,
    chain: Sequence[Recipe],
    count: int,
    rounds: int = 1,
) -> _Alike:
    """Candidates of a request, or dense models where there is none."""
    shapes: list[tuple[Transform, ...]] = [()]
    if request is not None:
        shapes = _shapes(config, facts, request, rounds)
    recipes = divided(chain, rounds)
    every = [(shapes[index // len(chain)], recipe) for index, recipe in enumerate(recipes)]
    return _Alike(count=count, shape=shapes[-1], runs=tuple(run for run in every if run[1].train_on == "corpus"))


def _shapes(config: ExperimentConfig, facts: ModelFacts, request: Request, rounds: int) -> list[tuple[Transform, ...]]:
    """What each round leaves; of all that a request may lead to, the largest."""
    if request.unit == "weight":
        return [()]  # as much work as the dense model
    if request.unit == "width":
        entry = next(entry for entry in config.prunings if isinstance(entry, WidthPruning))
        widths = widths_of(facts.model_config)
        return [(typical((widths.groups, widths.channels), narrowing_of(entry), request.target, facts.size),)]
    units = num_units(request.unit, facts.num_blocks)
    gone = steps_to(min(request.counts), rounds)
    return [removal(request.unit, range(units - each, units), facts.num_blocks) for each in gone]


def _climb(
    group: Sequence[_Alike],
    rungs: Sequence[float],
    shapes: Shapes,
    speeds: Speeds,
    config: ExperimentConfig,
    sampled: float | None = None,
) -> list[_Expected]:
    """A group of candidates that compete, at each rung; a run goes on from before the decay of the one before, and
    those of a chain behind the first begin anew.

    Args:
        sampled: candidates that a sampler chooses from the group; all unless given, or where there are fewer.
    """
    total = sum(one.count for one in group)
    left: float = total
    if sampled is not None:
        left = sampled if config.ranges else min(sampled, total)
    found = []
    for index, share in enumerate(rungs):
        left = math.ceil(left / REDUCTION) if index else left
        for one in group:
            cut = [shortened(recipe, share) for _, recipe in one.runs]
            firsts = [0] * len(cut)
            if index and cut:
                before = stable_end(shortened(one.runs[0][1], rungs[index - 1]))
                firsts[0] = min(before, stable_end(cut[0]))
            work = tuple(
                run_work(recipe, first, shapes.of(transforms, recipe))
                for (transforms, _), recipe, first in zip(one.runs, cut, firsts, strict=True)
            )
            cost = estimate(work, speeds.of, config.resources.accelerators)
            found.append(_Expected(of=one, share=share, number=left * one.count / total, work=work, cost=cost))
    return found


def _rung(share: float, expected: Sequence[_Expected]) -> RungForecast:
    tokens = sum(one.number * sum(work.tokens for work in one.work) for one in expected)
    return RungForecast(share=share, trials=round(sum(one.number for one in expected)), tokens=round(tokens))


def _checkpoint_bytes(config: ExperimentConfig, trained: Sequence[_Expected], shapes: Shapes) -> float:
    """Those of the trials that run, and those that candidates go on from or the user keeps."""
    sizes = [
        (one, max(BYTES_OF_TRAINED * shapes.of(transforms, r).trained_parameters for transforms, r in one.of.runs))
        for one in trained
    ]
    lowest = min((one.share for one in trained), default=1.0)
    at_lowest = [(one.number, size) for one, size in sizes if one.share == lowest]
    number = sum(number for number, _ in at_lowest)
    # Where others may still come, no candidate is beaten for good.
    may_rise = number if config.search.trials else most_promoted(math.ceil(number))
    keeps_all, keeps_some = config.retraining.keep_stable_checkpoint, bool(config.search.rungs and number)
    share = 1.0 if keeps_all else min(1.0, may_rise / number) if keeps_some else 0.0
    kept = share * sum(number * size for number, size in at_lowest)
    running = min(config.search.max_concurrent_trials, sum(one.number for one in trained))
    return kept + running * CHECKPOINTS_KEPT * max((size for _, size in sizes), default=0.0)


def _memory(
    config: ExperimentConfig, trained: Sequence[_Expected], shapes: Shapes, memory: float | None, size: ModelSize
) -> ProcessMemory | None:
    """The largest view of each way to train is tried; the one that takes most counts."""
    largest: dict[object, tuple[tuple[Transform, ...], Recipe]] = {}
    for transforms, recipe in (run for one in trained for run in one.of.runs):
        known = largest.get(key := (recipe.method, recipe.sequence_length))
        if known is None or size.after(transforms).parameters > size.after(known[0]).parameters:
            largest[key] = transforms, recipe
    found = [
        worker_memory(
            shapes.student(transforms, recipe), shapes.teacher() if recipe.distill else None, recipe,
            config.retraining, config.resources, dtype=config.model.dtype, memory=memory,
            holds_zeros=any(isinstance(entry, WeightPruning) for entry in config.prunings),
        )
        for transforms, recipe in largest.values()
    ]  # fmt: skip
    return max(found, key=lambda one: one.peak, default=None)


def _notes(config: ExperimentConfig) -> tuple[str, ...]:
    notes = ["scoring, evaluation and the start of processes"]
    if config.retraining.uses_instructions:
        notes.append("runs on instructions, whose length is known once the pairs are counted")
    if config.search.equal_seconds:
        notes.append("trials of equal_seconds")
    return tuple(notes)
