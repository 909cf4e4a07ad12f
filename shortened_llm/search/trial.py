"""One trial, from plan to scores: the spine of the system."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shortened_llm.config import ResourcesConfig
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.logs import LOGGER
from shortened_llm.records import (
    ModelRef,
    Provenance,
    RetrainedModel,
    TrialResult,
    TrialSpec,
    UnitScores,
)
from shortened_llm.retraining.job import is_retrained
from shortened_llm.retraining.launch import retrain
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.search.scoring import score
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.stored.provenance import publish_trained_card
from shortened_llm.storage.layout import RETRAINED, TRAIN, TRIALS
from shortened_llm.storage.payload import has_files
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext:
    """Where training runs."""

    space: SearchSpace
    store: Store
    experiment: Store
    """What belongs to this experiment alone: its Train runs and its failures."""
    resources: ResourcesConfig
    max_failures: int
    provenance: Provenance
    is_rehearsal: bool = False
    """Whether each run loses its workers once, to see that it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialContext(TrainContext):
    """Where a trial runs."""

    pool: EvaluationPool
    max_concurrent_trials: int
    driver: str
    """Who runs the experiment, as the owner of its lease is called."""
    driver_demand: Mapping[str, float]
    """What Ray reserves for the process that drives a trial."""
    evaluates_beside: bool
    """Whether evaluators have room beside the training workers."""


def read_result(store: Store, spec: TrialSpec) -> TrialResult | None:
    """The trial's result, where it is trained. One that cannot be read, such as another version's, or whose model is
    gone, is made again."""
    result = store.read(TRIALS, spec.fingerprint, TrialResult)
    if result is not None and not all(map(has_files, result.model.payloads)):
        LOGGER.warning("the model of trial %s is gone from %s", spec.name, result.model.url)
        return None
    return result


def write_result(store: Store, result: TrialResult, identity: Mapping[str, object]) -> None:
    """Write the record of a trial."""
    parents = (*result.model.parents, *(run.model.fingerprint for run in result.runs))
    store.write(TRIALS, result.fingerprint, result, identity=identity, parents=parents)


def run_trial(
    spec: TrialSpec, context: TrialContext, *, train_callbacks: Sequence[object], progress: Progress
) -> TrialResult:
    """Score the plan, retrain it, score the result; the record is written last.

    Args:
        train_callbacks: Ray Train callbacks that carry metrics to Tune and to the cluster.
        progress: about the trial, which the context is about too.
    """
    started = time.monotonic()
    space, selection = context.space, context.space.selection
    scoring = progress.about(f"evaluate {spec.name}")

    # The untrained view is scored by the pool while training starts.
    view = space.dense.view(spec.plan.transforms)
    scores_before = context.pool.submit(view, selection, scoring)
    if not context.evaluates_beside:
        context.pool.result(scores_before)  # or the workers wait for its GPUs, and may give up
    runs = train_runs(spec, context, train_callbacks=train_callbacks, progress=progress)
    LOGGER.info("scoring the retrained model")
    progress.enter("scoring")
    model = runs[-1].model if runs else view
    after = context.pool.evaluate(model, selection, scoring)
    before = context.pool.result(scores_before)

    result = TrialResult(
        fingerprint=spec.fingerprint,
        model=model,
        runs=runs,
        before=before,
        after=after,
        seconds=time.monotonic() - started,
        plan=space.made(spec, runs) if spec.rounds else None,
    )
    write_result(context.store, result, space.trial_identity(spec))
    return result


def train_runs(
    spec: TrialSpec, context: TrainContext, *, train_callbacks: Sequence[object], progress: Progress
) -> tuple[RetrainedModel, ...]:
    """The training runs of a trial, each from the model of the one before, or from what a round leaves of it; what is
    stored is read back. A trial that trains nothing has none."""
    runs: list[RetrainedModel] = []
    model = context.space.dense.view(spec.start)
    planned = context.space.runs(spec)
    # A run whose model is there needs no files of those before it.
    done = [index for index, run in enumerate(planned) if is_retrained(run, context.store)]
    last_done = max(done, default=-1)
    for index, run in enumerate(planned):
        is_made = index < last_done and context.store.read(RETRAINED, run.fingerprint, RetrainedModel) is not None
        if index not in done and not is_made and (count := spec.removed_before(index)):
            model = _shortened(model, count, spec, context, progress)
        LOGGER.info("starting training workers")
        runs.append(
            retrain(
                context.space.job(run, model, keeps_stable=index < context.space.num_kept(spec)),
                context.store,
                runs_url=join(context.experiment.url, TRAIN),
                resources=context.resources,
                max_failures=context.max_failures,
                tokens_before=sum(run.tokens for run in runs),
                needs_files=index > last_done,
                is_interrupted=context.is_rehearsal,
                callbacks=train_callbacks,
            )
        )
        model = runs[-1].model
    if runs:
        publish_trained_card(spec, context.space.made(spec, runs), tuple(runs), context.provenance)
    return tuple(runs)


def _shortened(model: ModelRef, count: int, spec: TrialSpec, context: TrainContext, progress: Progress) -> ModelRef:
    """The model without the `count` units that its own scores choose."""
    LOGGER.info("scoring the retrained model")
    job = context.space.scoring(spec, model, count)
    (scores,) = score((job,), context.resources, context.store, progress)
    assert isinstance(scores, UnitScores), "heads and channels go at once"
    return model.without(scores.unit, scores.removed(count))
