"""What a search would do, in words, before it does it."""

import math
from itertools import pairwise

from shortened_llm.config import ExperimentConfig, RetrainingConfig
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model
from shortened_llm.records import LoraOptions
from shortened_llm.retraining.adapters import adapted_share, adapter_targets
from shortened_llm.search.preflight import SearchFacts
from shortened_llm.search.strategies.rungs import REDUCTION
from shortened_llm.storage.store import Store


def _budgets(retraining: RetrainingConfig) -> str:
    """Tokens of a trial on the corpus, in whole steps."""
    if not retraining.runs:
        return "nothing is trained"
    steps = [budget // retraining.tokens_per_step for budget in retraining.budgets]
    listed = " or ".join(f"{count * retraining.tokens_per_step:,} tokens ({count} steps)" for count in steps)
    return f"{listed} a trial" if retraining.uses_corpus else "instructions alone"


def _adapters(adapters: LoraOptions, facts: SearchFacts) -> str:
    """Which layers get adapters, and what share of the blocks' weights they are."""
    model = empty_model(facts.model_config)
    targets = adapter_targets(model, adapters.target_modules)
    names = ", ".join(sorted({name.rpartition(".")[2] for name in targets}))
    stacked = any(weight.dim() == 3 for weight in find_blocks(model).parameters())
    without = "; experts get none" if stacked else ""
    return f"beside {adapted_share(model, targets):.0%} of the blocks' weights: {names}{without}"


def _exports(config: ExperimentConfig, facts: SearchFacts) -> str:
    """The type of what is written, beside that of what is read where this is another."""
    exported, stored = config.model.exported_dtype, str(facts.model_config.dtype or "").removeprefix("torch.")
    differs = (
        f", from files in {stored} (model.export_dtype: {stored} keeps it)" if stored not in ("", exported) else ""
    )
    return f"weights in {exported}{differs}"


def _rungs(config: ExperimentConfig, facts: SearchFacts) -> str:
    """How many trials come to each rung where no scores are tied, and what that saves."""
    rungs, targets = config.search.rungs, len(facts.requests)
    counts = [facts.max_trials]
    for _ in rungs[1:]:
        counts.append(targets * math.ceil(counts[-1] / targets / REDUCTION))
    listed = ", ".join(f"{count} at {100 * share:g} %" for count, share in zip(counts, rungs, strict=True))
    steps = (share - before for before, share in pairwise((0.0, *rungs)))
    tokens = sum(count * step for count, step in zip(counts, steps, strict=True)) / facts.max_trials
    return f"{listed} of the tokens, and more where scores are tied: about {tokens:.0%} of the tokens of all trials"


def _range(counts: tuple[int, ...]) -> str:
    """`6`, or `5 to 7` where it depends on which blocks go."""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def describe_search(config: ExperimentConfig, facts: SearchFacts, store: Store) -> str:
    """Plain text: trials, tokens, texts and where results go."""
    retraining, resources = config.retraining, config.resources
    counts = ", ".join(f"{_range(one.counts)} ({one.target.name.replace('%', ' %')})" for one in facts.requests)
    roles = facts.roles
    texts = ", ".join(
        f"{one.num_sequences} x {one.sequence_length} tokens of {one.label} ({documents.part})"
        for one, documents in zip(config.calibrations, roles.calibration, strict=False)
    )
    lines = [
        f"experiment  {config.experiment} in {store.experiment_url(config.experiment)}",
        f"model       {config.model.path}: {facts.num_blocks} blocks",
        f"scoring     {', '.join(config.criteria)}{' on ' if texts else ''}{texts}",
        f"removes     {counts} of {facts.num_blocks} blocks",
        f"trials      at most {facts.max_trials}; criteria that choose the same blocks share one",
        f"training    {', '.join(retraining.methods)}: {_budgets(retraining)}",
    ]
    if config.search.trials is not None:
        lines.append(f"samples     {config.search.trials} trials by Optuna, the sizes in turn")
        lines += [f"samples     {field}: {axis}" for field, axis in config.ranges.items()]
    if config.search.rungs:
        lines.append(f"rungs       {_rungs(config, facts)}")
    lines += [f"adapters    {_adapters(adapters, facts)}" for adapters in retraining.adapters]
    for name, documents in (("trains on", roles.train), ("selects on", roles.selection), ("reports on", roles.report)):
        nothing = "nothing: no report texts" if name == "reports on" else "nothing"
        texts = ", ".join(f"{text.source.label} ({text.part})" for text in documents) or nothing
        lines.append(f"{name:<12}{texts}")
    if config.evaluation.report.tasks:
        tasks = ", ".join(task.task for task in config.evaluation.report.tasks)
        lines.append(f"tasks       {tasks} for the dense model, the best of each size and the controls")
    lines.append(f"exports     {_exports(config, facts)}")
    workers = f"{resources.min_workers} to {resources.max_workers}" if resources.elastic else resources.max_workers
    lines.append(
        f"machines    {config.search.max_concurrent_trials} trial(s) at a time, each {workers} worker(s) x "
        f"{resources.cpus_per_worker:g} CPU, {resources.gpus_per_worker:g} GPU; {resources.evaluators} evaluator(s)"
    )
    return "\n".join(lines)
