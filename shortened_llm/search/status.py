"""How far a search is, from what is stored; imports neither torch nor ray.

Of a trial under way the storage holds what Ray Tune copied there last, which it does every few minutes.
"""

import contextlib
import datetime
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pydantic import TypeAdapter, ValidationError

from shortened_llm.records import Experiment, ReportedTrial, TrialSpec, accelerator_seconds
from shortened_llm.reporting.formats import first_line
from shortened_llm.reporting.rows import STATUSES, Status, trial_status
from shortened_llm.search.stored.experiment import experiment_directory, read_experiment
from shortened_llm.storage.layout import BEGUN, CONFIG, PLANNED, TUNE, record_url
from shortened_llm.storage.lease import holder
from shortened_llm.storage.urls import exists, find_files, join, modified, reached, read_bytes

TUNE_FILE = "result.json"
"""Tune's file of a trial: a line of JSON for each report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """What training reported at one moment; see `metrics.py`."""

    step: int
    """Optimiser steps of the run in progress."""
    tokens: int
    """Over all runs of the trial."""
    loss: float
    tokens_per_second: float
    accelerator_hours: float
    """Accelerator-hours of the run in progress."""
    timestamp: datetime.datetime


REPORT = TypeAdapter(TuneReport)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedHours:
    """Accelerator-hours of a trial, as its training reported them."""

    all: float
    since_first: float
    """Without those before the first report, where what was taken over from a shorter run lies."""
    lost: float
    """Those of steps that were done again after workers had been lost, which no model's record counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialProgress:
    """How far one trial is."""

    number: int
    """The number that it has in the report."""
    name: str
    state: Status
    cause: str | None
    """Why it failed, or was left out."""
    planned_tokens: int
    """Over all its training runs, padding included."""
    tokens: int
    """Trained on by the last report, without padding."""
    last: TuneReport | None
    """None where the storage holds no report of its training, and where it is done."""
    begun: datetime.datetime | None = None
    """When a trial that runs, or was stopped, was begun last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStatus:
    """How far a search is."""

    experiment: str
    driver: str | None
    """Who runs it; None: nobody."""
    states: dict[Status, int]
    """Number of trials in each state."""
    tokens: int
    planned_tokens: int
    accelerator_hours: float
    """Spent on training: of runs that ended, each once, by the last reports of those that have not, and on steps that
    were done again."""
    seconds_left: float | None
    """For the tokens that are left, as many trials at once as now; None where that is not known."""
    waiting_since: datetime.datetime | None
    """When the search that runs now, or ran last, planned the trials that wait."""
    trials: tuple[TrialProgress, ...]


def read_status(place: str) -> SearchStatus:
    """The status of an experiment, given as to `read_experiment`; raises as that."""
    directory = experiment_directory(place)
    with reached(f"EXPERIMENT: {place!r}"):
        driver = holder(directory)
        is_planned = exists(join(directory, PLANNED))
    if driver is not None and not is_planned:
        return SearchStatus(
            experiment=directory.rsplit("/", 1)[-1], driver=driver, states={}, tokens=0, planned_tokens=0,
            accelerator_hours=0.0, seconds_left=None, waiting_since=None, trials=(),
        )  # fmt: skip
    experiment = read_experiment(place)
    reports = _tune_reports(directory, {trial.spec.fingerprint for trial in experiment.trials})
    done = {trial.spec.fingerprint for trial in experiment.trials if trial.result is not None}
    reported = {fingerprint: _hours(of) for fingerprint, of in reports.items()}
    went_on = continuing((trial.spec for trial in experiment.trials), done)
    trials = tuple(
        _progress(number, trial, reports.get(trial.spec.fingerprint, []), directory)
        for number, trial in enumerate(experiment.trials, start=1)
    )
    counts = Counter(trial.state for trial in trials)
    return SearchStatus(
        experiment=experiment.name,
        driver=driver,
        states={state: counts[state] for state in STATUSES if counts[state]},
        tokens=sum(trial.tokens for trial in trials),
        planned_tokens=sum(trial.planned_tokens for trial in trials),
        accelerator_hours=_hours_of_results(experiment)
        + sum(
            hours.lost if fingerprint in done else hours.since_first if fingerprint in went_on else hours.all
            for fingerprint, hours in reported.items()
        ),
        seconds_left=_seconds_left(trials, _speed(experiment, trials)) if driver else None,
        waiting_since=_modified(join(directory, CONFIG)) if counts["waiting"] else None,
        trials=trials,
    )


def _tune_reports(directory: str, fingerprints: Collection[str]) -> dict[str, list[TuneReport]]:
    """What training reported of some trials, in its order; those that it reported nothing of are left out."""
    found = {}
    for file in find_files(join(directory, TUNE)):
        place, _, name = file.path.rpartition("/")
        fingerprint = re.split("[-/]", place)[-1]
        if name == TUNE_FILE and fingerprint in fingerprints:
            found[fingerprint] = _parse(read_bytes(join(directory, TUNE, file.path)))
    return {fingerprint: reports for fingerprint, reports in found.items() if reports}


def _parse(content: bytes) -> list[TuneReport]:
    """The reports of training in Tune's file; a line that is only half there, and other reports, are passed over."""
    reports = []
    for line in content.splitlines():
        with contextlib.suppress(ValidationError):
            reports.append(REPORT.validate_json(line))
    return reports


def _progress(number: int, trial: ReportedTrial, reports: Sequence[TuneReport], directory: str) -> TrialProgress:
    state, last = trial_status(trial), reports[-1] if reports else None
    progress = TrialProgress(
        number=number,
        name=trial.spec.name,
        state=state,
        cause={"failed": trial.failure, "left out": trial.left_out}.get(state),
        planned_tokens=sum(recipe.tokens for recipe in trial.spec.recipes),
        tokens=last.tokens if last else 0,
        last=last,
    )
    if trial.result is not None:
        return replace(progress, tokens=trial.result.tokens)
    if state in ("running", "stopped"):
        return replace(progress, begun=_modified(record_url(directory, BEGUN, trial.spec.fingerprint)))
    return progress


def _modified(url: str) -> datetime.datetime | None:
    try:
        return modified(url)
    except FileNotFoundError:
        return None


def continuing(specs: Iterable[TrialSpec], done: Collection[str]) -> set[str]:
    """Fingerprints of the trials whose candidates have a result at a lower rung: they go on from what that trained, and
    their reports count it.

    Args:
        done: fingerprints of the trials with a result.
    """
    every = list(specs)
    lowest: dict[str, float] = {}
    for spec in every:
        if spec.candidate and spec.fingerprint in done:
            lowest[spec.candidate] = min(spec.rung, lowest.get(spec.candidate, spec.rung))
    return {spec.fingerprint for spec in every if spec.rung > lowest.get(spec.candidate, math.inf)}


def reported_hours(directory: str, fingerprints: Collection[str]) -> dict[str, ReportedHours]:
    """What trials of the experiment in a directory or URL cost; those that reported nothing are left out."""
    return {fingerprint: _hours(of) for fingerprint, of in _tune_reports(directory, fingerprints).items()}


def _hours_of_results(experiment: Experiment) -> float:
    """Accelerator-hours of the runs that ended; trials may share some."""
    results = [trial.result for trial in experiment.trials if trial.result]
    return accelerator_seconds(run for result in results for run in result.runs) / 3600


def _hours(reports: Sequence[TuneReport]) -> ReportedHours:
    """What a trial cost by its reports, each of which counts from the start of its run: a run follows another where
    steps begin anew and tokens do not. Where both go back, the run went on from a checkpoint: of the last report that
    is left, or of one before the first, whose hours are not known, so that an interval is not counted."""
    paid, lost = [reports[-1].accelerator_hours], 0.0
    kept = [reports[0]]
    for report in reports[1:]:
        if report.step <= kept[-1].step and report.tokens > kept[-1].tokens:
            paid.append(kept[-1].accelerator_hours)
            kept = []
        elif report.step <= kept[-1].step:
            reached = kept[-1].accelerator_hours
            kept = [one for one in kept if one.step < report.step]
            lost += max(0.0, reached - (kept[-1] if kept else report).accelerator_hours)
        kept.append(report)
    whole = sum(paid) + lost
    return ReportedHours(all=whole, since_first=whole - reports[0].accelerator_hours, lost=lost)


def _speed(experiment: Experiment, trials: Sequence[TrialProgress]) -> float | None:
    """Tokens per second of one trial: of those that are done, scoring and start included, or else of those that run."""
    results = [trial.result for trial in experiment.trials if trial.result and trial.result.tokens]
    if results:
        # A trial that found its model trained took less time than the training.
        return sum(r.tokens for r in results) / sum(max(r.seconds, r.training_seconds) for r in results)
    reported = [trial.last.tokens_per_second for trial in trials if trial.state == "running" and trial.last]
    return fmean(reported) if reported else None


def _seconds_left(trials: Sequence[TrialProgress], speed: float | None) -> float | None:
    """For all tokens of trials that have not ended, as many trials at once as now."""
    left = sum(
        max(0, one.planned_tokens - one.tokens) for one in trials if one.state not in ("done", "failed", "left out")
    )
    running = sum(one.state == "running" for one in trials)
    return left / speed / max(1, running) if left and speed else None


def describe_status(status: SearchStatus) -> str:
    """Plain text: the search, then each trial that runs, was stopped, failed or was left out."""
    lines = [f"{status.experiment}: {f'run by {status.driver}' if status.driver else 'nobody runs it'}"]
    if not status.trials:
        return f"{lines[0]}\nno trials yet: the model, the texts and the scores of its blocks are being prepared"
    states = ", ".join(f"{count} {state}" for state, count in status.states.items())
    since = f" (waiting since {_moment(status.waiting_since)})" if status.waiting_since else ""
    lines.append(f"trials: {states}{since}")
    if status.driver and not status.states.keys() & {"running", "stopped", "waiting"}:
        lines.append("every trial has ended: the report is being made")
    lines.append(f"tokens: {status.tokens:,} of {status.planned_tokens:,} planned")
    lines.append(f"spent: {status.accelerator_hours:.3g} accelerator-hours")
    if status.seconds_left is not None:
        lines.append(f"left: about {max(1, round(status.seconds_left / 60)):,} min")
    lines += [
        _describe(trial) for trial in status.trials if trial.state in ("running", "stopped", "failed", "left out")
    ]
    return "\n".join(lines)


def _describe(trial: TrialProgress) -> str:
    head = f"{trial.number}. {trial.name}: {trial.state}"
    if trial.cause is not None:
        return f"{head}: {first_line(trial.cause)}"
    if trial.begun:
        head += f"{' since' if trial.state == 'running' else ', begun'} {_moment(trial.begun)}"
    if (last := trial.last) is None:
        return f"{head}; nothing reported yet"
    tokens = f"{trial.tokens:,} of {trial.planned_tokens:,} tokens"
    return f"{head}; step {last.step}, {tokens}, loss {last.loss:.4g} at {_moment(last.timestamp)}"


def _moment(moment: datetime.datetime) -> str:
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"
