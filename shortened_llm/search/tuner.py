"""Hand trials to Ray Tune. The only importer of ray.tune."""

import time
from collections.abc import Sequence

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from shortened_llm import metrics
from shortened_llm.config import TRIAL_DRIVER_CPUS
from shortened_llm.errors import last_line
from shortened_llm.logs import LOGGER, quiet_libraries
from shortened_llm.records import TrialFailure, TrialResult, TrialSpec
from shortened_llm.search.progress import Progress
from shortened_llm.search.trial import KIND, TrialContext, run_trial

FAILURES = "failures"
# A trial whose own process was lost starts again; its training resumes from the last checkpoint.
TRIAL_RESTARTS = 1


def run_trials(
    specs: Sequence[TrialSpec],
    context: TrialContext,
    *,
    tune_url: str,
    max_concurrent_trials: int,
    progress: Progress,
) -> dict[str, TrialFailure]:
    """Run every trial that has no record yet; results are read from the store.

    A fresh Tuner each time: the records say what is done, so nothing is restored from Tune's own state.

    Args:
        tune_url: directory of Tune's logs and TensorBoard events.

    Returns:
        The failures, by trial fingerprint.
    """
    todo = [spec for spec in specs if context.store.read(KIND, spec.fingerprint, TrialResult) is None]
    for spec in todo:
        context.experiment.remove(FAILURES, spec.fingerprint)
    if len(todo) < len(specs):
        LOGGER.info("%d of %d trials are done already", len(specs) - len(todo), len(specs))
    if not todo:
        return {}
    names = {spec.fingerprint: f"{specs.index(spec) + 1}/{len(specs)} {spec.name}" for spec in todo}
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
        ray.tune.report({metrics.TOKENS: result.retrained.tokens, metrics.HELD_OUT_NLL: result.after.mean_nll})

    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, {"CPU": TRIAL_DRIVER_CPUS}),
        param_space={"trial": ray.tune.grid_search(list(by_fingerprint))},
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=max_concurrent_trials,
            trial_name_creator=lambda trial: str(trial.config["trial"]),
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=ray.tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=tune_url,
            failure_config=ray.tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            verbose=0,
        ),
    )
    results = {result.config["trial"]: result for result in tuner.fit()}
    failures = {}
    for spec in todo:
        if context.store.read(KIND, spec.fingerprint, TrialResult) is None:
            failure = context.experiment.read(FAILURES, spec.fingerprint, TrialFailure)
            if failure is None:  # its process was lost, more often than it was started again
                lost = results[spec.fingerprint].error
                cause = last_line(lost) if lost else "ended without a result"
                failure = TrialFailure(fingerprint=spec.fingerprint, cause=cause)
            LOGGER.error("trial %s failed: %s", names[spec.fingerprint], failure.cause)
            failures[spec.fingerprint] = failure
    return failures
