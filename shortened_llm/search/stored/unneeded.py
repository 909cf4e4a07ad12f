"""What no experiment of a storage needs any more. Rather too little than too much: in doubt a thing is needed.

Every record names its parents, the results that it was made from. Needed is what a report or a rerun of an experiment
reads:

- its trials, with all that they were made from: training runs, tokens, and the checkpoints before the decay of these
  runs, from which longer ones go on;
- every record made from its dense model or one of its retrained models: scores, measurements, evaluations, tokens;
- payload attempts that a needed record, or a file of an experiment, names.

While an experiment is not finished, all training runs from its dense model count as its own. A place below
`experiments/` without a plan, that of a search which has not planned yet, may need any record: as long as there is one,
records stay. Nothing younger than a safety age is touched, so that no writer loses what it has written and not recorded
yet; and while things are removed no search begins.
"""

import datetime
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shortened_llm.logs import LOGGER
from shortened_llm.search.stored.experiment import read_runs
from shortened_llm.storage.inventory import StoredRecord, read_records
from shortened_llm.storage.layout import (
    CLEANING,
    EXPERIMENTS,
    LEASE,
    MODELS,
    PLANNED,
    REPORT,
    REPORTED,
    RETRAINED,
    RUNS,
    STABLE,
    TRAIN,
    TRIALS,
)
from shortened_llm.storage.lease import holder
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import StoredFile, delete, find_files, join, read_bytes

LONGEST_WRITE = datetime.timedelta(hours=24)
"""How long a payload may take to be written, record included."""
ATTEMPT = re.compile(r"attempt-[0-9a-f]{8}")
Group = list[StoredFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unneeded:
    """One thing to remove."""

    kind: str
    path: str
    """Below the storage: of a directory, or of one file."""
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experiment:
    name: str
    held: bool
    text: str
    """Its record and report as they are stored; empty where it has none."""
    planned: bool
    dense: frozenset[str]
    """Fingerprints of the models that it begins with."""
    trials: frozenset[str]
    runs: frozenset[str]
    """Runs of `jobs.retrain`, which makes no trials."""

    def is_finished(self, trials: Collection[str], runs: Collection[str]) -> bool:
        return self.planned and not self.held and self.trials <= set(trials) and self.runs <= set(runs)


def find_unneeded(store: Store, *, min_age: datetime.timedelta, now: datetime.datetime | None = None) -> list[Unneeded]:
    """What may be removed from a storage, by kind and path.

    Args:
        min_age: since something was last written; what is younger is left alone, and so are attempts younger than a
            day while a search runs.
        now: by the clock of the storage, see `Lease.now`; by this machine's, which may be off, unless given.

    Raises:
        BadInputError: a record cannot be read, so that what it needs is not known.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    files = find_files(store.url)
    experiments, records = _experiments(store, files, now), read_records(store, files)
    done = [_fingerprints(records, kind) for kind in (TRIALS, RETRAINED)]
    needed = _needed(records, experiments, [one for one in experiments if not one.is_finished(*done)])
    kept = [record.text for record in records if record.fingerprint in needed]
    given_up = [record for record in records if record.fingerprint not in needed]
    own = (f"{EXPERIMENTS}/", f"{CLEANING}/")
    places = _by_directory((file for file in files if not file.path.startswith(own)), depth=2)
    named = _attempts_in([*kept, *(one.text for one in experiments)])
    groups: dict[tuple[str, str], Group] = {}
    for record in given_up:
        if not named & _by_attempt(places[record.path]).keys():
            groups[record.kind, record.path] = places.pop(record.path)
    named |= _attempts_in(record.text for record in given_up)
    for place, members in places.items():
        for attempt, of_attempt in _by_attempt(members).items():
            if attempt not in named:
                groups["attempts", f"{place}/{attempt}"] = of_attempt
    for one in experiments:
        of_one = [file for file in files if file.path.startswith(f"{EXPERIMENTS}/{one.name}/")]
        groups |= _left_by(one, of_one, is_finished=one.is_finished(*done))
    if all(one.is_finished(*done) for one in experiments):
        stable = {path: files for path, files in places.items() if path.startswith(f"{STABLE}/")}
        groups |= {(STABLE, path): files for path, files in stable.items() if path.split("/")[1] not in needed}
    newest = now - min_age
    # Whoever runs may be writing an attempt that it has not named yet.
    newest_attempt = now - max(min_age, LONGEST_WRITE) if any(one.held for one in experiments) else newest
    found = [
        Unneeded(kind=kind, path=path, num_bytes=sum(file.num_bytes for file in members))
        for (kind, path), members in groups.items()
        if all(file.modified <= (newest_attempt if kind == "attempts" else newest) for file in members)
    ]
    return sorted(found, key=lambda one: (one.kind, one.path))


def remove(store: Store, things: Sequence[Unneeded]) -> None:
    """Remove what `find_unneeded` found: a record goes before its payload, so that none is left without."""
    for thing in things:
        if thing.path.count("/") == 1:
            store.remove(*thing.path.split("/"))
        delete(join(store.url, thing.path))


def _fingerprints(records: Iterable[StoredRecord], kind: str) -> set[str]:
    return {record.fingerprint for record in records if record.kind == kind}


def _needed(
    records: Sequence[StoredRecord], experiments: Sequence[_Experiment], unfinished: Sequence[_Experiment]
) -> set[str]:
    """Fingerprints of all that the experiments need, whether or not it has a record."""
    if unplanned := ", ".join(one.name for one in experiments if not one.planned):
        LOGGER.warning("no record is given up, since these may need any: %s (no %s)", unplanned, PLANNED)
        return {fingerprint for record in records for fingerprint in (record.fingerprint, *record.parents)}
    parents: dict[str, set[str]] = defaultdict(set)
    for record in records:
        parents[record.fingerprint] |= record.parents
    runs = [record for record in records if record.kind == RETRAINED]
    needed = _with_ancestors({f for one in experiments for f in (*one.trials, *one.runs, *one.dense)}, parents)
    origins = {fingerprint for one in unfinished for fingerprint in one.dense}
    while more := {run.fingerprint for run in runs if run.parents & origins} - origins:
        origins |= more  # a run may begin with the model of another
    needed |= _with_ancestors(origins, parents)
    # A dense model in a local directory has no record.
    models = needed & {*(r.fingerprint for r in records if r.kind in (MODELS, RETRAINED)), *(needed - parents.keys())}
    about = {r.fingerprint for r in records if r.kind not in (MODELS, RETRAINED, TRIALS) and r.parents & models}
    return needed | _with_ancestors(about, parents)


def _with_ancestors(fingerprints: set[str], parents: Mapping[str, set[str]]) -> set[str]:
    found, ahead = set(fingerprints), list(fingerprints)
    while ahead:
        new = parents.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def _left_by(experiment: _Experiment, own: Sequence[StoredFile], *, is_finished: bool) -> dict[tuple[str, str], Group]:
    """Among its own files: checkpoints once it is finished, and all leases but the newest."""
    if experiment.held:
        return {}
    place = f"{EXPERIMENTS}/{experiment.name}"
    groups: dict[tuple[str, str], Group] = {}
    training = [file for file in own if file.path.startswith(f"{place}/{TRAIN}/")]
    if training and is_finished:
        groups["train runs", f"{place}/{TRAIN}"] = training
    leases = sorted((file for file in own if file.path.startswith(f"{place}/{LEASE}/")), key=lambda file: file.path)
    for lease in leases[:-1]:  # the newest number stays: the next driver counts on from it
        groups["leases", lease.path] = [lease]
    return groups


def _by_directory(files: Iterable[StoredFile], *, depth: int) -> dict[str, Group]:
    groups: dict[str, Group] = defaultdict(list)
    for file in files:
        parts = file.path.split("/")
        if len(parts) > depth:
            groups["/".join(parts[:depth])].append(file)
    return groups


def _by_attempt(files: Iterable[StoredFile]) -> dict[str, Group]:
    """Payload files of `<kind>/<fingerprint>/`, by the name of their attempt."""
    groups = _by_directory(files, depth=3)
    return {name: members for path, members in groups.items() if ATTEMPT.fullmatch(name := path.split("/")[2])}


def _attempts_in(texts: Iterable[str]) -> set[str]:
    return set(ATTEMPT.findall("".join(texts)))


def _experiments(store: Store, files: Sequence[StoredFile], now: datetime.datetime) -> list[_Experiment]:
    paths = {file.path for file in files}
    names = sorted({file.path.split("/")[1] for file in files if file.path.startswith(f"{EXPERIMENTS}/")})
    return [_experiment(store, name, paths, now) for name in names]


def _experiment(store: Store, name: str, paths: Collection[str], now: datetime.datetime) -> _Experiment:
    texts = [
        read_bytes(join(store.url, path)).decode()
        for place in (PLANNED, f"{REPORT}/{REPORTED}")
        if (path := f"{EXPERIMENTS}/{name}/{place}") in paths
    ]
    has_runs = f"{EXPERIMENTS}/{name}/{RUNS}" in paths
    runs = read_runs(store, name) if has_runs else None
    dense: set[str] = set(runs.dense) if runs else set()
    trials: set[str] = set()
    planned = bool(texts or runs) and not (has_runs and runs is None)
    for text in texts:
        try:
            content = json.loads(text)
            dense.add(content["dense_fingerprint"])
            trials |= {trial["spec"]["fingerprint"] for trial in content["trials"]}
        except (ValueError, KeyError, TypeError):
            planned = False
    return _Experiment(
        name=name,
        held=holder(store.experiment_url(name), now) is not None,
        text="".join(texts),
        planned=planned,
        dense=frozenset(dense),
        trials=frozenset(trials),
        runs=frozenset(runs.runs if runs else ()),
    )
