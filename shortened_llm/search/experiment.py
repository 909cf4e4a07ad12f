"""The files that belong to one experiment alone: `<storage>/experiments/<name>/`. Imports neither torch nor ray."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from shortened_llm.config import SearchConfig
from shortened_llm.errors import BadInputError, brief
from shortened_llm.logs import LOGGER
from shortened_llm.records import EvalScores, Experiment, ReportedTrial, TrialFailure, TrialResult, from_json, to_json
from shortened_llm.reporting.write import write_report
from shortened_llm.storage.lease import is_held
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import EXPERIMENTS, DamagedRecordError, Store
from shortened_llm.storage.urls import join, list_names, normalise, read_bytes, write_bytes

RECORD = "experiment.json"
REPORT = "report"
TRIALS = "trials.json"
TRIAL_KIND = "trials"
"""Kind of a `TrialResult` in the store."""
FAILURES = "failures"
"""Kind of a `TrialFailure` in the experiment's own directory."""
TUNE = "tune"
"""Directory of Tune's logs, one directory for each run and in it one for each trial that began."""


def read_config(store: Store, name: str) -> dict[str, object] | None:
    """The configuration that an experiment was started with, as JSON; None for a new experiment."""
    url = _config_url(store, name)
    try:
        return dict(json.loads(read_bytes(url)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        LOGGER.warning("%s cannot be read (%s); it counts as absent", url, brief(error))
        return None


def write_config(store: Store, config: SearchConfig) -> None:
    """Record the configuration of an experiment that begins or continues."""
    write_bytes(_config_url(store, config.experiment), config.model_dump_json(indent=2).encode())


def write_experiment(store: Store, experiment: Experiment) -> None:
    """Record what a report needs: once the trials are known, with none of their results, and again at the end."""
    write_bytes(join(store.experiment_url(experiment.name), RECORD), to_json(experiment).encode())


def read_experiment(url: str) -> Experiment:
    """The experiment in a directory or URL, with all that its store holds by now; see `filled_in`.

    Args:
        url: `<storage>/experiments/<name>`, a directory with a `trials.json` alone, or a place inside either: its
            `report`, or one of the files.

    Raises:
        BadInputError: there is no experiment, or its record cannot be read.
    """
    directory = experiment_directory(url)
    planned, reported = _read(join(directory, RECORD)), _read(join(directory, REPORT, TRIALS))
    found = planned or reported or _read(join(directory, TRIALS))
    if found is None:
        raise BadInputError(
            f"EXPERIMENT: {url!r} holds no experiment; give the path or URL of <storage>/experiments/<name>, which has "
            f"{RECORD} or {REPORT}/{TRIALS}"
        )
    if planned and reported:
        found = _with_report_scores(planned, reported)
    parent, _, name = directory.rpartition("/")
    storage, _, kind = parent.rpartition("/")
    return filled_in(found, Store(storage), directory) if kind == EXPERIMENTS and name else found


def experiment_directory(url: str) -> str:
    """The directory behind any place that `read_experiment` takes."""
    directory = normalise(url)
    if directory.rsplit("/", 1)[-1] in (RECORD, TRIALS, "report.html"):
        directory = directory.rsplit("/", 1)[0]
    return directory.rsplit("/", 1)[0] if directory.rsplit("/", 1)[-1] == REPORT else directory


def _read(url: str) -> Experiment | None:
    try:
        return from_json(Experiment, read_bytes(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInputError(
            f"EXPERIMENT: {url!r} is no record of an experiment that this version reads ({place}: {first['msg']}); "
            "run the search again: finished work is kept"
        ) from None


def _with_report_scores(planned: Experiment, reported: Experiment) -> Experiment:
    """A search that runs again has not measured its report scores yet; those of its last report still hold."""
    last = {trial.spec.fingerprint: trial for trial in reported.trials}
    return replace(planned, trials=tuple(_measured_before(trial, last) for trial in planned.trials))


def _measured_before(trial: ReportedTrial, last: Mapping[str, ReportedTrial]) -> ReportedTrial:
    known = last.get(trial.spec.fingerprint)
    unmeasured = trial.before == trial.after == EvalScores()
    return replace(trial, before=known.before, after=known.after) if known and unmeasured else trial


def filled_in(experiment: Experiment, store: Store, directory: str) -> Experiment:
    """With the results and failures that are stored by now, and which trials are running.

    Args:
        store: of the whole storage, which has the results.
        directory: of the experiment, which has the failures.
    """
    begun: set[str] = set()
    if is_held(directory):
        runs = list_names(join(directory, TUNE))
        begun = set(list_names(join(directory, TUNE, runs[-1]))) if runs else set()
    own = Store(directory)
    return replace(experiment, trials=tuple(_filled_in(trial, store, own, begun) for trial in experiment.trials))


def _filled_in(trial: ReportedTrial, store: Store, own: Store, begun: set[str]) -> ReportedTrial:
    fingerprint = trial.spec.fingerprint
    try:
        result = trial.result or store.load(TRIAL_KIND, fingerprint, TrialResult)
        failure = own.load(FAILURES, fingerprint, TrialFailure) if result is None else None
    except DamagedRecordError as error:  # it must not cost the other trials their report
        result, failure = None, TrialFailure(fingerprint=fingerprint, cause=str(error))
    cause = failure.cause if failure else trial.failure
    running = result is None and cause is None and fingerprint in begun
    return replace(trial, result=result, failure=cause, running=running)


def publish_report(store: Store, experiment: Experiment) -> str:
    """Write the report's files to storage, the page itself last; returns its path or URL."""
    return publish_to(join(store.experiment_url(experiment.name), REPORT), experiment)


def publish_to(url: str, experiment: Experiment) -> str:
    """The same, to any directory or URL."""
    with tempfile.TemporaryDirectory(prefix="shortened_llm_report_") as temporary:
        directory = Path(temporary)
        page = write_report(experiment, directory)
        with tempfile.TemporaryDirectory(prefix="shortened_llm_page_") as last:
            shutil.move(page, Path(last) / page.name)
            upload_directory(directory, url)
            upload_directory(Path(last), url)
    return join(url, page.name)


def _config_url(store: Store, name: str) -> str:
    return join(store.experiment_url(name), "config.json")
