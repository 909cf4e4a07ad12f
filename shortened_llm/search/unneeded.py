"""What no experiment of a storage needs any more. Rather too little than too much: in doubt a thing is needed.

Needed is what a report or a rerun of an experiment reads:

- its trials, and the training runs of these, by fingerprint;
- every record about its dense model or one of its retrained models: scores, measurements, evaluations, tokens;
- payload attempts that a needed record, or a file of an experiment, names.

While an experiment is not finished, all training runs from its dense model count as its own. A place below
`experiments/` without a plan (a search that has not planned yet, or `jobs.retrain`) may need any record: as long as
there is one, records stay. Nothing younger than a safety age is touched, so that no writer loses what it has written
and not recorded yet.
"""

import datetime
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from shortened_llm.logs import LOGGER
from shortened_llm.search.experiment import RECORD, REPORT, TRIAL_KIND, TRIALS
from shortened_llm.storage.inventory import StoredRecord, read_records
from shortened_llm.storage.lease import is_held
from shortened_llm.storage.store import EXPERIMENTS, Store
from shortened_llm.storage.urls import StoredFile, delete, find_files, join, read_bytes

ATTEMPT = re.compile(r"attempt-[0-9a-f]{8}")
RUN_KIND, MODEL_KIND = "retrained", "models"
# Where the identity of a record says which model's files, or whose tokenizer, it is about; see the stages.
MODEL_OF = {
    "scores": ("model", "files"),
    "measurements": ("model", "files"),
    "evaluations": ("model", "files"),
    RUN_KIND: ("model", "files"),
    "tokens": ("tokenizer",),
    "token_shards": ("tokenizer",),
}

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
    """Its record and report as they are stored; empty where it has no plan."""
    dense: str | None
    trials: frozenset[str]

    @property
    def planned(self) -> bool:
        return self.dense is not None

    def is_finished(self, done: Collection[str]) -> bool:
        return self.planned and not self.held and self.trials <= set(done)


def find_unneeded(store: Store, *, min_age: datetime.timedelta) -> list[Unneeded]:
    """What may be removed from a storage, by kind and path.

    Raises:
        BadInputError: a record cannot be read, so that what it needs is not known.
    """
    files = find_files(store.url)
    experiments, records = _experiments(store, files), read_records(store, files)
    is_needed = _needed_records(records, experiments)
    kept = [record.text for record in records if is_needed(record)]
    given_up = [record for record in records if not is_needed(record)]
    places = _by_directory((file for file in files if not file.path.startswith(f"{EXPERIMENTS}/")), depth=2)
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
    done = {record.fingerprint for record in records if record.kind == TRIAL_KIND}
    for one in experiments:
        own = [file for file in files if file.path.startswith(f"{EXPERIMENTS}/{one.name}/")]
        groups |= _left_by(one, own, done)
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
        if thing.kind in MODEL_OF or thing.kind in (MODEL_KIND, TRIAL_KIND):
            store.remove(*thing.path.split("/"))
        delete(join(store.url, thing.path))


def _needed_records(
    records: Sequence[StoredRecord], experiments: Sequence[_Experiment]
) -> Callable[[StoredRecord], bool]:
    if unplanned := ", ".join(one.name for one in experiments if not one.planned):
        LOGGER.warning("no record is given up, since these may need any: %s (no %s)", unplanned, RECORD)
        return lambda record: True
    trials = {fingerprint for one in experiments for fingerprint in one.trials}
    dense = {one.dense for one in experiments if one.dense is not None}
    runs = _needed_runs(records, experiments)
    results, models = {TRIAL_KIND: trials, RUN_KIND: runs, MODEL_KIND: dense}, {None, *dense, *runs}

    def is_needed(record: StoredRecord) -> bool:
        if record.kind in results:
            return record.fingerprint in results[record.kind]
        return record.kind not in MODEL_OF or _model_of(record) in models

    return is_needed


def _needed_runs(records: Sequence[StoredRecord], experiments: Sequence[_Experiment]) -> set[str]:
    """Runs that a trial names, and all that began with the dense model of an unfinished experiment."""
    runs = {record.fingerprint: record for record in records if record.kind == RUN_KIND}
    trials = {record.fingerprint: record.text for record in records if record.kind == TRIAL_KIND}
    texts = [trials[fingerprint] for one in experiments for fingerprint in one.trials & trials.keys()]
    needed = {fingerprint for fingerprint in runs if any(f'"{fingerprint}"' in text for text in texts)}
    origins: set[str | None] = {None, *(one.dense for one in experiments if not one.is_finished(trials.keys()))}
    while more := {key for key, run in runs.items() if key not in needed and _model_of(run) in origins}:
        needed |= more
        origins |= more  # a run may begin with the model of another
    return needed


def _model_of(record: StoredRecord) -> str | None:
    """Fingerprint of the model that a record is about, where it says so."""
    found: object = record.identity
    for key in MODEL_OF.get(record.kind, ()):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _left_by(experiment: _Experiment, own: Sequence[StoredFile], done: Collection[str]) -> dict[tuple[str, str], Group]:
    """Among its own files: checkpoints once it is finished, and all leases but the newest."""
    if experiment.held:
        return {}
    place = f"{EXPERIMENTS}/{experiment.name}"
    groups: dict[tuple[str, str], Group] = {}
    training = [file for file in own if file.path.startswith(f"{place}/train/")]
    if training and experiment.is_finished(done):
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
    found = []
    for name in names:
        texts = [
            read_bytes(join(store.url, path)).decode()
            for place in (RECORD, f"{REPORT}/{TRIALS}")
            if (path := f"{EXPERIMENTS}/{name}/{place}") in paths
        ]
        dense, trials = None, set()
        for text in texts:
            try:
                content = json.loads(text)
                dense = dense or content["dense_fingerprint"]
                trials |= {trial["spec"]["fingerprint"] for trial in content["trials"]}
            except (ValueError, KeyError, TypeError):
                dense = None
                break
        held = is_held(store.experiment_url(name))
        found.append(_Experiment(name=name, held=held, text="".join(texts), dense=dense, trials=frozenset(trials)))
    return found
