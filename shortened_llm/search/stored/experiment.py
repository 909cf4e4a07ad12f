"""The files that belong to one experiment alone: `<storage>/experiments/<name>/`. Imports neither torch nor ray."""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from shortened_llm.config import ExperimentConfig
from shortened_llm.errors import BadInputError, brief
from shortened_llm.logs import LOGGER
from shortened_llm.records import (
    EvalScores,
    Experiment,
    ReportedTrial,
    TrialFailure,
    TrialResult,
    TrialSpec,
    from_json,
    to_json,
)
from shortened_llm.reporting.write import write_report
from shortened_llm.storage.layout import (
    BEGUN,
    CONFIG,
    EXPERIMENTS,
    FAILURES,
    PAGE,
    PLANNED,
    REPORT,
    REPORTED,
    RUNS,
    TRIALS,
    cleaning_url,
    experiment_url,
)
from shortened_llm.storage.lease import hold_lease, holder
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.store import DamagedRecordError, Store
from shortened_llm.storage.urls import exists, join, normalise, reached, read_bytes, write_bytes

DEFAULT_STORAGE: str = ExperimentConfig.model_fields["storage"].default.url
EXPERIMENT_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A trial that a driver began."""

    driver: str
    """The name of the owner of the lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Training runs outside a search."""

    dense: tuple[str, ...]
    """Fingerprints of the dense models that they begin with."""
    runs: tuple[str, ...]
    """Their fingerprints."""


@contextlib.contextmanager
def own_experiment(store: Store, name: str) -> Iterator[str]:
    """Own an experiment for the length of the context, under the name that is given; see `hold_lease`.

    Raises:
        BadInputError: while another driver runs it, or something is being removed from the storage.
    """
    with hold_lease(store.experiment_url(name)) as lease:
        if holder(cleaning_url(store.url), lease.now()):
            raise BadInputError(
                f"storage.url: jobs.clean is removing what {store.url} does not need, which might be needed from now "
                "on; wait until it is done"
            )
        yield lease.owner


def read_runs(store: Store, name: str) -> Runs | None:
    """What `jobs.retrain` made under an experiment's name; None where that is nothing, or not known."""
    try:
        return from_json(Runs, read_bytes(join(store.experiment_url(name), RUNS)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        LOGGER.warning("%s of %s cannot be read (%s); it counts as absent", RUNS, name, brief(error))
        return None


def add_runs(store: Store, name: str, dense: str, runs: Iterable[str]) -> None:
    """Record training runs outside a search, beside those of before."""
    known = read_runs(store, name) or Runs(dense=(), runs=())
    merged = Runs(
        dense=tuple(sorted({*known.dense, dense})),
        runs=tuple(sorted({*known.runs, *runs})),
    )
    write_bytes(join(store.experiment_url(name), RUNS), to_json(merged).encode())


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


def write_config(store: Store, config: ExperimentConfig) -> None:
    """Record the configuration of an experiment that begins or continues."""
    write_bytes(_config_url(store, config.experiment), config.model_dump_json(indent=2).encode())


def write_experiment(store: Store, experiment: Experiment) -> None:
    """Record what a report needs: once the trials are known, with none of their results, and again at the end."""
    write_bytes(join(store.experiment_url(experiment.name), PLANNED), to_json(experiment).encode())


def read_experiment(url: str) -> Experiment:
    """The experiment in a directory or URL, with all that its store holds by now; see `filled_in`.

    Args:
        url: `<storage>/experiments/<name>`, a directory with a `trials.json` alone, or a place inside either: its
            `report`, or one of the files; or the name of an experiment in the default storage.

    Raises:
        BadInputError: there is no experiment, or its record cannot be read.
    """
    directory = experiment_directory(url)
    with reached(f"EXPERIMENT: {url!r}"):
        planned, reported = _read(join(directory, PLANNED)), _read(join(directory, REPORT, REPORTED))
        found = planned or reported or _read(join(directory, REPORTED))
    if found is None:
        raise BadInputError(
            f"EXPERIMENT: {url!r} holds no experiment; give the path or URL of <storage>/experiments/<name>, which has "
            f"{PLANNED} or {REPORT}/{REPORTED}, or the name of one below {DEFAULT_STORAGE}"
        )
    if planned and reported:
        found = _with_report_scores(planned, reported)
    parent, _, name = directory.rpartition("/")
    storage, _, kind = parent.rpartition("/")
    return filled_in(found, Store(storage), directory) if kind == EXPERIMENTS and name else found


def planned_spec(directory: str, fingerprint: str) -> TrialSpec:
    """A trial of the experiment in a directory or URL, as it was proposed."""
    planned = from_json(Experiment, read_bytes(join(directory, PLANNED)))
    return next(trial.spec for trial in planned.trials if trial.spec.fingerprint == fingerprint)


def experiment_directory(url: str) -> str:
    """The directory behind any place that `read_experiment` takes."""
    named = EXPERIMENT_NAME.fullmatch(url) and exists(experiment_url(DEFAULT_STORAGE, url))  # a local path
    directory = normalise(experiment_url(DEFAULT_STORAGE, url) if named else url)
    if directory.rsplit("/", 1)[-1] in (PLANNED, REPORTED, PAGE):
        directory = directory.rsplit("/", 1)[0]
    above, _, last = directory.rpartition("/")
    is_experiment = above.rpartition("/")[2] == EXPERIMENTS  # it may be called "report"
    return above if last == REPORT and not is_experiment else directory


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
    own, driver = Store(directory), holder(directory)
    return replace(experiment, trials=tuple(_filled_in(trial, store, own, driver) for trial in experiment.trials))


def _filled_in(trial: ReportedTrial, store: Store, own: Store, driver: str | None) -> ReportedTrial:
    fingerprint = trial.spec.fingerprint
    try:
        result = trial.result or store.load(TRIALS, fingerprint, TrialResult)
        failure = own.load(FAILURES, fingerprint, TrialFailure) if result is None else None
    except DamagedRecordError as error:  # it must not cost the other trials their report
        result, failure = None, TrialFailure(fingerprint=fingerprint, cause=str(error))
    cause = failure.cause if failure else trial.failure
    begun = own.read(BEGUN, fingerprint, Begun) if result is None and cause is None else None
    running = begun is not None and begun.driver == driver
    return replace(trial, result=result, failure=cause, running=running, stopped=begun is not None and not running)


def publish_report(store: Store, experiment: Experiment) -> str:
    """Write the report's files to storage, the page itself last; returns its path or URL."""
    return publish_to(join(store.experiment_url(experiment.name), REPORT), experiment)


def publish_to(url: str, experiment: Experiment) -> str:
    """Write the report's files to any directory or URL."""
    with tempfile.TemporaryDirectory(prefix="shortened_llm_report_") as temporary:
        directory = Path(temporary)
        page = write_report(experiment, directory)
        # Whole or not at all: the one is read again, the other tells that all is there.
        last = (directory / REPORTED, page)
        contents = [path.read_bytes() for path in last]
        for path in last:
            path.unlink()
        upload_directory(directory, url)
        for path, content in zip(last, contents, strict=True):
            write_bytes(join(url, path.name), content)
    return join(url, page.name)


def _config_url(store: Store, name: str) -> str:
    return join(store.experiment_url(name), CONFIG)
