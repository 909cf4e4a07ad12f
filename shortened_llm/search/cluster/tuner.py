"""Hand trials to Ray Tune. The only importer of ray.tune."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray.tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.integration.ray_train import TuneReportCallback

from shortened_llm import metrics
from shortened_llm.config import TrackingConfig
from shortened_llm.errors import last_line
from shortened_llm.logs import LOGGER, setup_process
from shortened_llm.records import RetrainedModel, TrialFailure, TrialResult, TrialSpec
from shortened_llm.search.cluster.progress import Progress
from shortened_llm.search.cluster.trackers import tracker_callbacks
from shortened_llm.search.cluster.train_callbacks import watch_callbacks
from shortened_llm.search.space import SearchSpace, waves
from shortened_llm.search.stored.experiment import Begun
from shortened_llm.search.trial import TrialContext, is_done, read_result, run_trial
from shortened_llm.storage.clients import ray_storage
from shortened_llm.storage.layout import BEGUN, FAILURES, RETRAINED

# Tune would send the driver's keys with every trial, to be read in logs and on the dashboard. Nodes have their own.
ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])
# A trial whose own process was lost starts again; its training resumes from the last checkpoint.
TRIAL_RESTARTS = 1
LONGEST_NAME = 100
"""Characters of a trial's name in that of its directory."""
# Tune hands the driver's setting on to trials for some of Ray Train's variables, but not for this one.
STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialLogs:
    """Where those who watch a search see its trials."""

    experiment: str
    """Its name in metrics and trackers."""
    tune_url: str
    """Directory of Tune's logs and TensorBoard events."""
    tracking: TrackingConfig
    progress: Progress


class TrialFailedError(RuntimeError):
    """A trial has no result; its cause is recorded."""


def run_trials(
    specs: Sequence[TrialSpec], context: TrialContext, logs: TrialLogs, *, before: int = 0
) -> dict[str, TrialFailure]:
    """Run every trial that has no record yet; results are read from the store.

    A fresh Tuner each time: the records say what is done, so nothing is restored from Tune's own state.

    Args:
        before: trials of the experiment that came before these, for their numbers.

    Returns:
        The failures, by trial fingerprint.
    """
    todo = [spec for spec in specs if not is_done(context.store, spec)]
    for spec in todo:
        context.experiment.remove(FAILURES, spec.fingerprint)
    if len(todo) < len(specs):
        LOGGER.info("%d of %d trials are done already", len(specs) - len(todo), len(specs))
    total = before + len(specs)
    names = {spec.fingerprint: f"{i}/{total} {spec.name}" for i, spec in enumerate(specs, start=before + 1)}
    for spec in specs:
        _about(names[spec.fingerprint], logs).enter("pending" if spec in todo else "done")
        if spec not in todo and (result := read_result(context.store, spec)):
            _post_hours(result, spec, context.space, logs.progress)
    first, later = waves(context.space, todo)
    failures = _run_wave(first, names, context, logs)
    ready = []
    for spec in later:
        # Made by a trial of the first wave, unless that failed; two trials must not make it at a time.
        begins_with = context.space.jobs(spec)[0]
        if context.store.read(RETRAINED, begins_with.fingerprint, RetrainedModel) is None:
            cause = f"the {begins_with.recipe.method} run that it begins with failed in another trial"
            failures[spec.fingerprint] = TrialFailure(fingerprint=spec.fingerprint, cause=cause)
            _about(names[spec.fingerprint], logs).enter("failed")
            LOGGER.error("trial %s failed: %s", names[spec.fingerprint], cause)
        else:
            ready.append(spec)
    return failures | _run_wave(ready, names, context, logs)


def _run_wave(
    todo: Sequence[TrialSpec],
    names: Mapping[str, str],
    context: TrialContext,
    logs: TrialLogs,
) -> dict[str, TrialFailure]:
    """Run trials that share no training run; returns the failures."""
    if not todo:
        return {}
    by_fingerprint = {spec.fingerprint: spec for spec in todo}
    state_tracking = os.environ.get(STATE_TRACKING, "0")

    def trainable(config: dict[str, dict[str, str]]) -> None:
        setup_process()
        context.store.enter()
        os.environ.setdefault(STATE_TRACKING, state_tracking)
        spec = by_fingerprint[config["trial"]["fingerprint"]]
        name, own = names[spec.fingerprint], context.experiment
        if known := own.read(FAILURES, spec.fingerprint, TrialFailure):
            raise TrialFailedError(known.cause)  # Tune starts it once more: Train has retried its training already
        own.write(BEGUN, spec.fingerprint, Begun(driver=context.driver), identity={}, parents=())
        progress = _about(name, logs)
        watching = watch_callbacks(logs.experiment, name, context.resources, progress)
        try:
            with progress.under_way():
                callbacks = [TuneReportCallback(), *watching]
                result = run_trial(spec, context, train_callbacks=callbacks, progress=progress)
        except Exception as error:
            if not progress.is_heard():
                raise  # the search was stopped, which takes much away that a trial needs
            failure = TrialFailure(fingerprint=spec.fingerprint, cause=last_line(error))
            own.write(FAILURES, spec.fingerprint, failure, identity={}, parents=())
            progress.enter("failed")
            raise TrialFailedError(failure.cause) from error
        progress.enter("done")
        _post_hours(result, spec, context.space, progress)
        last = {metrics.TOKENS: result.tokens, metrics.TIME_AXIS: result.tokens}
        ray.tune.report({**last, metrics.HELD_OUT_NLL: result.after.mean_nll})

    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, dict(context.driver_demand)),
        param_space={"trial": ray.tune.grid_search([_describe(spec) for spec in by_fingerprint.values()])},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=context.max_concurrent_trials,
            trial_name_creator=lambda trial: str(trial.config["trial"]["name"]),
            trial_dirname_creator=lambda trial: directory_name(by_fingerprint[trial.config["trial"]["fingerprint"]]),
        ),
        run_config=ray.tune.RunConfig(
            name=logs.experiment,  # the same each time: a trial that goes on does so in its directory
            **ray_storage(logs.tune_url),
            callbacks=tracker_callbacks(logs.tracking, logs.experiment),
            failure_config=ray.tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            verbose=0,
        ),
    )
    results = {result.config["trial"]["fingerprint"]: result for result in tuner.fit()}
    failures = {}
    for spec in todo:
        if read_result(context.store, spec) is None:
            failure = context.experiment.read(FAILURES, spec.fingerprint, TrialFailure)
            if failure is None:  # its process was lost, more often than it was started again
                lost = results[spec.fingerprint].error
                cause = last_line(lost) if lost else "ended without a result"
                failure = TrialFailure(fingerprint=spec.fingerprint, cause=cause)
            LOGGER.error("trial %s failed: %s", names[spec.fingerprint], failure.cause)
            _about(names[spec.fingerprint], logs).enter("failed")
            failures[spec.fingerprint] = failure
    return failures


def directory_name(spec: TrialSpec) -> str:
    """The name of a trial's logs, for people: `ppl-20-cpt-lr-0.0003-seed-0-<fingerprint>`."""
    readable = re.sub(r"[^\w.-]+", "-", spec.name).strip("-")[:LONGEST_NAME]
    return f"{readable}-{spec.fingerprint}"


def _about(name: str, logs: TrialLogs) -> Progress:
    return logs.progress.about(f"trial {name}")


def _post_hours(result: TrialResult, spec: TrialSpec, space: SearchSpace, progress: Progress) -> None:
    for job, run in zip(space.jobs(spec), result.runs, strict=True):
        progress.spend(job.run_name, run.accelerator_seconds / 3600)


def _describe(spec: TrialSpec) -> dict[str, object]:
    """The trial as Tune and trackers show it."""
    return {
        "fingerprint": spec.fingerprint,
        "name": spec.name,
        "plan": spec.plan.name,
        "blocks": spec.plan.size.blocks,
        "method": spec.method,
        "learning_rate": spec.learning_rate,
        "seed": spec.seed,
    }
