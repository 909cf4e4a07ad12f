"""One trial, from plan to scores: the spine of the system."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.config import ResourcesConfig
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.records import TrialResult, TrialSpec
from shortened_llm.retraining.launch import retrain
from shortened_llm.search.progress import Progress
from shortened_llm.search.space import SearchSpace
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import join

KIND = "trials"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialContext:
    """Where a trial runs."""

    space: SearchSpace
    store: Store
    experiment: Store
    """What belongs to this experiment alone: its Train runs and its failures."""
    pool: EvaluationPool
    resources: ResourcesConfig
    max_failures: int


def run_trial(
    spec: TrialSpec, context: TrialContext, *, train_callbacks: Sequence[object], on_progress: Progress
) -> TrialResult:
    """Score the plan, retrain it, score the result; the record is written last.

    Args:
        train_callbacks: Ray Train callbacks that carry metrics to Tune.
    """
    started = time.monotonic()
    space, selection = context.space, context.space.selection
    job = space.job(spec.plan, spec.method, spec.learning_rate)

    # The untrained view is scored by the pool while training starts.
    scores_before = context.pool.submit(job.model, selection, on_progress.about(f"evaluate {spec.name}"))
    on_progress("starting training workers")
    retrained = retrain(
        job,
        context.store,
        runs_url=join(context.experiment.url, "train"),
        resources=context.resources,
        max_failures=context.max_failures,
        callbacks=train_callbacks,
        on_progress=on_progress,
    )
    on_progress("scoring the retrained model")
    after = context.pool.evaluate(retrained.model, selection, on_progress.about(f"evaluate {spec.name}"))
    before = context.pool.result(scores_before)

    result = TrialResult(
        fingerprint=spec.fingerprint,
        retrained=retrained,
        before=before,
        after=after,
        seconds=time.monotonic() - started,
    )
    context.store.write(KIND, spec.fingerprint, result, identity=space.trial_identity(job))
    return result
