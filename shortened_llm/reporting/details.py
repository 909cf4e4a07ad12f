"""Everything about one trial: how it was made, from what, and at what cost."""

from collections.abc import Iterator
from dataclasses import dataclass

from shortened_llm.records import Experiment, Recipe, RetrainedModel
from shortened_llm.reporting import formats
from shortened_llm.reporting.rows import TrialRow

Fact = tuple[str, str]
"""What it is about, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageStep:
    """One model on the way from the dense one."""

    name: str
    fingerprint: str | None
    url: str | None
    """Directory of its files; None where it has none of its own."""


def lineage(experiment: Experiment, row: TrialRow) -> tuple[LineageStep, ...]:
    """Dense model, view, and the model of each run, as far as the trial came."""
    view = f"view: without its blocks {formats.block_ranges(row.plan.removed_blocks)}"
    steps = [
        LineageStep(
            name=f"dense: {experiment.model}", fingerprint=experiment.dense_fingerprint, url=experiment.dense_url
        ),
        LineageStep(name=view if row.plan.removed_blocks else "all of its blocks", fingerprint=None, url=None),
    ]
    trained = list(zip(row.trial.spec.recipes, row.runs, strict=False))
    for number, (recipe, run) in enumerate(trained, start=1):
        name = f"run {number}: {recipe.method} on {recipe.train_on}"
        steps.append(LineageStep(name=name, fingerprint=run.model.fingerprint, url=run.model.url))
        if run.adapter:
            adapter = run.adapter
            steps.append(
                LineageStep(name=f"run {number}: adapters alone", fingerprint=adapter.fingerprint, url=adapter.url)
            )
    return tuple(steps)


def configurations(row: TrialRow) -> tuple[tuple[Fact, ...], ...]:
    """Of each run that trains."""
    runs: list[RetrainedModel | None] = [*row.runs] or [None] * len(row.trial.spec.recipes)
    pairs = zip(row.trial.spec.recipes, runs, strict=True)
    return tuple(tuple(_run(recipe, run)) for recipe, run in pairs)


def _run(recipe: Recipe, run: RetrainedModel | None) -> Iterator[Fact]:
    yield "method", f"{recipe.method} on {recipe.train_on}"
    yield "learning rate", f"{formats.learning_rate(recipe.learning_rate)}, {_schedule(recipe)}"
    yield "seed", str(recipe.seed)
    batch = f"{formats.count(recipe.num_steps)} steps of {recipe.global_batch_size} × {recipe.sequence_length} tokens"
    yield "budget", f"{formats.compact(recipe.tokens)} tokens: {batch}"
    beta1, beta2 = recipe.betas
    optimiser = f"AdamW β {beta1:g}, {beta2:g}, weight decay {recipe.weight_decay:g}"
    yield "optimiser", f"{optimiser}, gradient norm at most {recipe.max_gradient_norm:g}"
    if recipe.isolate_documents:
        yield "attention", "within a document"
    if lora := recipe.lora:
        size = f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}"
        yield "adapters", f"{size}: {', '.join(lora.target_modules)}"
    if recipe.distill:
        weight = f"weight of the hard loss {recipe.distill.hard_loss_weight:g}"
        yield "distillation", f"temperature {recipe.distill.temperature:g}, {weight}"
    if recipe.tuned_blocks is not None:
        yield "trained blocks", f"the last {recipe.tuned_blocks}"
    if run:
        cost = f"{formats.compact(run.tokens)} tokens without padding in {formats.seconds(run.seconds)} s"
        yield "cost", f"{cost}, {formats.hours(run.accelerator_seconds)} accelerator hours"


def _schedule(recipe: Recipe) -> str:
    end = f"to {recipe.final_learning_rate_ratio:g} of it"
    decay = f"{recipe.decay_steps} decay steps {end}" if recipe.schedule == "wsd" else f"decay {end}"
    return f"{recipe.schedule}: {recipe.warmup_steps} warm-up steps, {decay}"
