"""Hand trials to Ray Tune. The only importer of ray.tune."""

import time
from collections.abc import Mapping, Sequence

import ray.tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.integration.ray_train import TuneReportCallback

from shortened_llm import metrics
from shortened_llm.errors import last_line
from shortened_llm.logs import LOGGER, quiet_libraries
from shortened_llm.records import RetrainedModel, TrialFailure, TrialSpec
from shortened_llm.retraining.export import KIND as RUN_KIND
from shortened_llm.search.experiment import FAILURES
from shortened_llm.search.progress import Progress
from shortened_llm.search.space import waves
from shortened_llm.search.trial import TrialContext, is_done, read_result, run_trial
from shortened_llm.storage.clients import ray_storage

# Tune would send the driver's keys with every trial, to be read in logs and on the dashboard. Nodes have their own.
ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])
# A trial whose own process was lost starts again; its training resumes from the last checkpoint.
TRIAL_RESTARTS = 1


def run_trials(
    specs: Sequence[TrialSpec],
    context: TrialContext,
    *,
    tune_url: str,
    progress: Progress,
) -> dict[str, TrialFailure]:
    """Run every trial that has no record yet; results are read from the store.

    A fresh Tuner each time: the records say what is done, so nothing is restored from Tune's own state.

    Args:
        tune_url: directory of Tune's logs and TensorBoard events.

    Returns:
        The failures, by trial fingerprint.
    """
    todo = [spec for spec in specs if not is_done(context.store, spec)]
    for spec in todo:
        context.experiment.remove(FAILURES, spec.fingerprint)
    if len(todo) < len(specs):
        LOGGER.info("%d of %d trials are done already", len(specs) - len(todo), len(specs))
    names = {spec.fingerprint: f"{specs.index(spec) + 1}/{len(specs)} {spec.name}" for spec in todo}
    first, later = waves(context.space, todo)
    failures = _run_wave(first, names, context, tune_url, progress)
    ready = []
    for spec in later:
        # Made by a trial of the first wave, unless that failed; two trials must not make it at a time.
        begins_with = context.space.jobs(spec)[0]
        if context.store.read(RUN_KIND, begins_with.fingerprint, RetrainedModel) is None:
            cause = f"the {begins_with.recipe.method} run that it begins with failed in another trial"
            failures[spec.fingerprint] = TrialFailure(fingerprint=spec.fingerprint, cause=cause)
            LOGGER.error("trial %s failed: %s", names[spec.fingerprint], cause)
        else:
            ready.append(spec)
    return failures | _run_wave(ready, names, context, tune_url, progress)


def _run_wave(
    todo: Sequence[TrialSpec],
    names: Mapping[str, str],
    context: TrialContext,
    tune_url: str,
    progress: Progress,
) -> dict[str, TrialFailure]:
    """Run trials that share no training run; returns the failures."""
    if not todo:
        return {}
    by_fingerprint = {spec.fingerprint: spec for spec in todo}

    def trainable(config: dict[str, str]) -> None:
        quiet_libraries()
        spec = by_fingerprint[config["trial"]]
        on_progress = progress.about(f"trial {names[spec.fingerprint]}")
        try:
            result = run_trial(spec, context, train_callbacks=[TuneReportCallback()], on_progress=on_progress)
        except Exception as error:
            # Recorded, not raised: Tune would start the trial again, and Train has retried its training already.
            failure = TrialFailure(fingerprint=spec.fingerprint, cause=last_line(error))
            context.experiment.write(FAILURES, spec.fingerprint, failure, identity={})
            return
        finally:
            on_progress(None)
        ray.tune.report({metrics.TOKENS: result.tokens, metrics.HELD_OUT_NLL: result.after.mean_nll})

    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, dict(context.driver_demand)),
        param_space={"trial": ray.tune.grid_search(list(by_fingerprint))},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=context.max_concurrent_trials,
            trial_name_creator=lambda trial: str(trial.config["trial"]),
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=ray.tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            **ray_storage(tune_url),
            failure_config=ray.tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            verbose=0,
        ),
    )
    results = {result.config["trial"]: result for result in tuner.fit()}
    failures = {}
    for spec in todo:
        if read_result(context.store, spec) is None:
            failure = context.experiment.read(FAILURES, spec.fingerprint, TrialFailure)
            if failure is None:  # its process was lost, more often than it was started again
                lost = results[spec.fingerprint].error
                cause = last_line(lost) if lost else "ended without a result"
                failure = TrialFailure(fingerprint=spec.fingerprint, cause=cause)
            LOGGER.error("trial %s failed: %s", names[spec.fingerprint], failure.cause)
            failures[spec.fingerprint] = failure
    return failures
