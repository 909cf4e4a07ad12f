"""What no experiment of a storage needs any more. Rather too little than too much: in doubt a thing is needed.

Needed is what a report or a rerun of an experiment reads:

- its trials, and the training runs of these, by fingerprint;
- every record about its dense model or one of its retrained models: scores, measurements, evaluations, tokens;
- payload attempts that a needed record, or a file of an experiment, names;
- the checkpoints before the decay of its training runs, from which longer ones go on.

While an experiment is not finished, all training runs from its dense model count as its own. A place below
`experiments/` without a plan, that of a search which has not planned yet, may need any record: as long as there is one,
records stay. Nothing younger than a safety age is touched, so that no writer loses what it has written and not recorded
yet; and while things are removed no search begins.
"""

import datetime
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shortened_llm.logs import LOGGER
from shortened_llm.retraining.job import KIND as RUN_KIND
from shortened_llm.retraining.job import stable_fingerprint
from shortened_llm.search.experiment import RECORD, REPORT, RUNS, TRIAL_KIND, TRIALS, read_runs
from shortened_llm.storage.inventory import StoredRecord, read_records
from shortened_llm.storage.lease import holder
from shortened_llm.storage.store import CLEANING, EXPERIMENTS, Store
from shortened_llm.storage.urls import StoredFile, delete, find_files, join, read_bytes

ATTEMPT = re.compile(r"attempt-[0-9a-f]{8}")
MODEL_KIND, STABLE_KIND = "models", "stable"
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
    """Of `jobs.retrain`, which makes no trials."""

    def is_finished(self, trials: Collection[str], runs: Collection[str]) -> bool:
        return self.planned and not self.held and self.trials <= set(trials) and self.runs <= set(runs)


def find_unneeded(store: Store, *, min_age: datetime.timedelta) -> list[Unneeded]:
    """What may be removed from a storage, by kind and path.

    Raises:
        BadInputError: a record cannot be read, so that what it needs is not known.
    """
    files = find_files(store.url)
    experiments, records = _experiments(store, files), read_records(store, files)
    runs = _needed_runs(records, experiments)
    is_needed = _needed_records(records, experiments, runs)
    kept = [record.text for record in records if is_needed(record)]
    given_up = [record for record in records if not is_needed(record)]
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
    done = [_fingerprints(records, kind) for kind in (TRIAL_KIND, RUN_KIND)]
    for one in experiments:
        of_one = [file for file in files if file.path.startswith(f"{EXPERIMENTS}/{one.name}/")]
        groups |= _left_by(one, of_one, is_finished=one.is_finished(*done))
    if all(one.is_finished(*done) for one in experiments):
        groups |= _stable_of_others(places, [record for record in records if record.fingerprint in runs])
    newest = datetime.datetime.now(datetime.UTC) - min_age
    found = [
        Unneeded(kind=kind, path=path, num_bytes=sum(file.num_bytes for file in members))
        for (kind, path), members in groups.items()
        if all(file.modified <= newest for file in members)
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


def _needed_records(
    records: Sequence[StoredRecord], experiments: Sequence[_Experiment], runs: set[str]
) -> Callable[[StoredRecord], bool]:
    if unplanned := ", ".join(one.name for one in experiments if not one.planned):
        LOGGER.warning("no record is given up, since these may need any: %s (no %s)", unplanned, RECORD)
        return lambda record: True
    trials = {fingerprint for one in experiments for fingerprint in one.trials}
    dense = {fingerprint for one in experiments for fingerprint in one.dense}
    results, models = {TRIAL_KIND: trials, RUN_KIND: runs, MODEL_KIND: dense}, {*dense, *runs}

    def is_needed(record: StoredRecord) -> bool:
        if record.kind in results:
            return record.fingerprint in results[record.kind]
        about = _models_of(record.identity)
        return not about or bool(about & models)

    return is_needed


def _needed_runs(records: Sequence[StoredRecord], experiments: Sequence[_Experiment]) -> set[str]:
    """Runs that an experiment names, and all that began with the dense model of an unfinished one."""
    runs = {record.fingerprint: record for record in records if record.kind == RUN_KIND}
    trials = {record.fingerprint: record.text for record in records if record.kind == TRIAL_KIND}
    texts = [trials[fingerprint] for one in experiments for fingerprint in one.trials & trials.keys()]
    needed = {fingerprint for fingerprint in runs if any(f'"{fingerprint}"' in text for text in texts)}
    needed |= {fingerprint for one in experiments for fingerprint in one.runs & runs.keys()}
    unfinished = [one for one in experiments if not one.is_finished(trials.keys(), runs.keys())]
    origins = {fingerprint for one in unfinished for fingerprint in one.dense}
    while more := {key for key, run in runs.items() if key not in needed and _models_of(run.identity) & origins}:
        needed |= more
        origins |= more  # a run may begin with the model of another
    return needed


def _models_of(identity: object) -> set[str]:
    """Fingerprints of the models that a record is about, wherever its identity says so: of the files of a model, or of
    the one whose tokenizer made tokens."""
    if isinstance(identity, list):
        return set().union(*map(_models_of, identity))
    if not isinstance(identity, dict):
        return set()
    found = set().union(*map(_models_of, identity.values()))
    model = identity.get("model")
    for name in (model.get("files") if isinstance(model, dict) else None, identity.get("tokenizer")):
        if isinstance(name, str):
            found.add(name)
    return found


def _stable_of_others(places: Mapping[str, Group], runs: Iterable[StoredRecord]) -> dict[tuple[str, str], Group]:
    """Checkpoints before the decay of runs that are not needed."""
    trained = (record.identity for record in runs if record.kind == RUN_KIND and record.identity.get("recipe"))
    needed = {f"{STABLE_KIND}/{stable_fingerprint(identity)}" for identity in trained}
    return {
        (STABLE_KIND, path): files
        for path, files in places.items()
        if path.startswith(f"{STABLE_KIND}/") and path not in needed
    }


def _left_by(experiment: _Experiment, own: Sequence[StoredFile], *, is_finished: bool) -> dict[tuple[str, str], Group]:
    """Among its own files: checkpoints once it is finished, and all leases but the newest."""
    if experiment.held:
        return {}
    place = f"{EXPERIMENTS}/{experiment.name}"
    groups: dict[tuple[str, str], Group] = {}
    training = [file for file in own if file.path.startswith(f"{place}/train/")]
    if training and is_finished:
        groups["train runs", f"{place}/train"] = training
    leases = sorted((file for file in own if file.path.startswith(f"{place}/lease/")), key=lambda file: file.path)
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


def _experiments(store: Store, files: Sequence[StoredFile]) -> list[_Experiment]:
    paths = {file.path for file in files}
    names = sorted({file.path.split("/")[1] for file in files if file.path.startswith(f"{EXPERIMENTS}/")})
    return [_experiment(store, name, paths) for name in names]


def _experiment(store: Store, name: str, paths: Collection[str]) -> _Experiment:
    texts = [
        read_bytes(join(store.url, path)).decode()
        for place in (RECORD, f"{REPORT}/{TRIALS}")
        if (path := f"{EXPERIMENTS}/{name}/{place}") in paths
    ]
    runs = read_runs(store, name) if f"{EXPERIMENTS}/{name}/{RUNS}" in paths else None
    dense: set[str] = set(runs.dense) if runs else set()
    trials: set[str] = set()
    planned = bool(texts or runs)
    for text in texts:
        try:
            content = json.loads(text)
            dense.add(content["dense_fingerprint"])
            trials |= {trial["spec"]["fingerprint"] for trial in content["trials"]}
        except (ValueError, KeyError, TypeError):
            planned = False
    return _Experiment(
        name=name,
        held=holder(store.experiment_url(name)) is not None,
        text="".join(texts),
        planned=planned,
        dense=frozenset(dense),
        trials=frozenset(trials),
        runs=frozenset(runs.runs if runs else ()),
    )
