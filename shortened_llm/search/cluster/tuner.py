"""Hand trials to Ray Tune. The only importer of ray.tune."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace

import ray.tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from shortened_llm import metrics
from shortened_llm.config import TrackingConfig
from shortened_llm.errors import last_line
from shortened_llm.logs import LOGGER, setup_process
from shortened_llm.records import TrialFailure, TrialResult, TrialSpec
from shortened_llm.search.cluster.progress import Progress, ProgressLog
from shortened_llm.search.cluster.trackers import tracker_callbacks
from shortened_llm.search.cluster.train_callbacks import watch_callbacks
from shortened_llm.search.proposals import LOST, Proposals
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.stored.experiment import Begun, planned_spec
from shortened_llm.search.trial import TrialContext, run_trial
from shortened_llm.storage.clients import ray_storage
from shortened_llm.storage.layout import BEGUN, FAILURES, TUNE
from shortened_llm.storage.urls import join

# Tune would send the driver's keys with every trial, to be read in logs and on the dashboard. Nodes have their own.
ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])
# A trial whose own process was lost starts again; its training resumes from the last checkpoint.
TRIAL_RESTARTS = 1
LONGEST_NAME = 100
"""Characters of a trial's name in that of its directory."""
# Tune hands the driver's setting on to trials for some of Ray Train's variables, but not for this one.
STATE_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"


class TrialFailedError(RuntimeError):
    """A trial has no result; its cause is recorded."""


def run_trials(
    proposals: Proposals, context: TrialContext, tracking: TrackingConfig, log: ProgressLog
) -> dict[str, TrialFailure]:
    """Run every trial that is proposed and has no result yet; results are read from the store.

    A fresh Tuner each time: the records say what is done, so nothing is restored from Tune's own state.

    Args:
        tracking: where those who watch a search see its trials.

    Returns:
        The failures, by trial fingerprint.
    """
    progress = log.about("search")
    searcher = ProposalSearcher(proposals, context, progress)
    if searcher.has_next:
        searcher.explain(_fit(searcher, context, tracking, progress))
    for fingerprint, failure in proposals.failures.items():
        LOGGER.error("trial %s failed: %s", proposals.titles[fingerprint], failure.cause)
        _about(proposals.titles[fingerprint], progress).enter("failed")
    for fingerprint, reason in proposals.left_out.items():
        LOGGER.warning("trial %s was left out: %s", proposals.titles[fingerprint], reason)
    return proposals.failures


class ProposalSearcher(Searcher):
    """Hands Tune the next trial whenever it has room for one."""

    def __init__(self, proposals: Proposals, context: TrialContext, progress: Progress) -> None:
        super().__init__()
        self._proposals, self._context, self._progress = proposals, context, progress
        self._fingerprints: dict[str, str] = {}
        """Fingerprints of trials, by Tune's identifier."""
        self._num_posted = 0
        self._next = self._propose()

    @property
    def has_next(self) -> bool:
        return self._next is not None

    def suggest(self, trial_id: str) -> dict | str | None:
        """Describe the next trial; None: not yet."""
        spec, self._next = self._next or self._propose(), None
        if spec is None:
            return str(Searcher.FINISHED) if self._proposals.is_finished else None
        self._fingerprints[trial_id] = spec.fingerprint
        return {"trial": _describe(spec, self._proposals.titles[spec.fingerprint])}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Take note of it, with the cause where it failed."""
        fingerprint = self._fingerprints[trial_id]
        self._proposals.end(fingerprint, self._context.experiment.read(FAILURES, fingerprint, TrialFailure))

    def explain(self, results: ray.tune.ResultGrid) -> None:
        """Tune alone knows how a process was lost."""
        for result in results:
            failure = self._proposals.failures.get((result.config or {})["trial"]["fingerprint"])
            if failure and failure.cause == LOST and result.error:
                self._proposals.failures[failure.fingerprint] = replace(failure, cause=last_line(result.error))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the records say what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    def __getstate__(self) -> dict:
        """Nothing: Tune pickles its settings, and never reads them here."""
        return {}

    def _propose(self) -> TrialSpec | None:
        spec = self._proposals.next()
        if spec is not None:
            self._context.experiment.remove(FAILURES, spec.fingerprint)
        new = self._proposals.specs[self._num_posted :]
        if new:
            self._post(new)
        return spec

    def _post(self, new: Sequence[TrialSpec]) -> None:
        """Show trials that were proposed, and what those cost that are done already."""
        self._num_posted += len(new)
        done = 0
        for spec in new:
            progress = _about(self._proposals.titles[spec.fingerprint], self._progress)
            if result := self._proposals.result(spec):
                done += 1
                progress.enter("done")
                _post_hours(result, spec, self._context.space, progress)
            else:
                progress.enter("pending")
        if done:
            LOGGER.info("%d of %d trials are done already", done, self._num_posted)


def _fit(
    searcher: ProposalSearcher, context: TrialContext, tracking: TrackingConfig, search: Progress
) -> ray.tune.ResultGrid:
    experiment = context.experiment.url.rsplit("/", 1)[-1]
    state_tracking = os.environ.get(STATE_TRACKING, "0")

    def trainable(config: dict[str, dict[str, str]]) -> None:
        setup_process()
        context.store.enter()
        os.environ.setdefault(STATE_TRACKING, state_tracking)
        own, fingerprint = context.experiment, config["trial"]["fingerprint"]
        spec, name = planned_spec(own.url, fingerprint), config["trial"]["title"]
        if known := own.read(FAILURES, fingerprint, TrialFailure):
            raise TrialFailedError(known.cause)  # Tune starts it once more: Train has retried its training already
        own.write(BEGUN, fingerprint, Begun(driver=context.driver), identity={}, parents=())
        progress = _about(name, search)
        watching = watch_callbacks(experiment, name, context.resources, progress)
        try:
            with progress.under_way():
                callbacks = [TuneReportCallback(), *watching]
                result = run_trial(spec, context, train_callbacks=callbacks, progress=progress)
        except Exception as error:
            if not progress.is_heard():
                raise  # the search was stopped, which takes much away that a trial needs
            failure = TrialFailure(fingerprint=fingerprint, cause=last_line(error))
            own.write(FAILURES, fingerprint, failure, identity={}, parents=())
            progress.enter("failed")
            raise TrialFailedError(failure.cause) from error
        progress.enter("done")
        _post_hours(result, spec, context.space, progress)
        last = {metrics.TOKENS: result.tokens, metrics.TIME_AXIS: result.tokens}
        scores = {metrics.HELD_OUT_NLL: result.after.mean_nll, metrics.SEARCH_LOSS: spec.objective.loss(result.after)}
        ray.tune.report({**last, **scores})

    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, dict(context.driver_demand)),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,  # until nothing is proposed any more
            max_concurrent_trials=context.max_concurrent_trials,
            trial_name_creator=lambda trial: str(trial.config["trial"]["name"]),
            trial_dirname_creator=lambda trial: directory_name(**trial.config["trial"]),
        ),
        run_config=ray.tune.RunConfig(
            name=experiment,  # the same each time: a trial that goes on does so in its directory
            **ray_storage(join(context.experiment.url, TUNE)),
            callbacks=tracker_callbacks(tracking, experiment),
            failure_config=ray.tune.FailureConfig(max_failures=TRIAL_RESTARTS),
            verbose=0,
        ),
    )
    return tuner.fit()


def directory_name(name: str, fingerprint: str, **_: object) -> str:
    """The name of a trial's logs, for people: `ppl-20-cpt-lr-0.0003-seed-0-<fingerprint>`."""
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-")[:LONGEST_NAME]
    return f"{readable}-{fingerprint}"


def _about(name: str, progress: Progress) -> Progress:
    return progress.about(f"trial {name}")


def _post_hours(result: TrialResult, spec: TrialSpec, space: SearchSpace, progress: Progress) -> None:
    for run, made in zip(space.runs(spec), result.runs, strict=True):
        progress.spend(run.name, made.accelerator_seconds / 3600)


def _describe(spec: TrialSpec, title: str) -> dict[str, object]:
    """The trial as Tune and trackers show it."""
    return {
        "title": title,
        "fingerprint": spec.fingerprint,
        "name": spec.name,
        "plan": spec.plan.name,
        "target": "/".join(dict.fromkeys(label.target.name for label in spec.plan.labels)),
        "blocks": spec.plan.size.blocks,
        "method": spec.method,
        "settings": spec.settings,
        "learning_rate": spec.learning_rate,
        "seed": spec.seed,
        "rounds": len(spec.rounds.gone) if spec.rounds else 1,
        "rung": spec.rung,
    }
