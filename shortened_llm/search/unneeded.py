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
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shortened_llm.logs import LOGGER
from shortened_llm.search.experiment import RECORD, REPORT, TRIAL_KIND, TRIALS
from shortened_llm.storage.lease import is_held
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import StoredFile, delete, find_files, join, read_bytes

EXPERIMENTS = "experiments"
RECORD_NAME = "record.json"
ATTEMPT = re.compile(r"attempt-[0-9a-f]{8}")
# Where the identity of a record says which model's files, or whose tokenizer, it is about; see the stages.
MODEL_OF = {
    "scores": ("model", "files"),
    "measurements": ("model", "files"),
    "evaluations": ("model", "files"),
    "retrained": ("model", "files"),
    "tokens": ("tokenizer",),
    "token_shards": ("tokenizer",),
}
RUN_KIND, MODEL_KIND = "retrained", "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unneeded:
    """One thing to remove."""

    kind: str
    path: str
    """Below the storage: of a directory, or of one file."""
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    kind: str
    fingerprint: str
    text: str
    identity: dict[str, object]

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that it is about."""
        found: object = self.identity
        for key in MODEL_OF.get(self.kind, ()):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, str) else None


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


def find_unneeded(store: Store, *, min_age: datetime.timedelta) -> list[Unneeded]:
    """What may be removed from a storage, by kind and path."""
    files = find_files(store.url)
    now = datetime.datetime.now(datetime.UTC)
    old = {file.path for file in files if now - file.modified >= min_age}
    experiments = _experiments(store, files)
    records = _records(store, files)
    if records is None:
        return []
    groups: dict[str, list[StoredFile]] = defaultdict(list)
    for file in files:
        parts = file.path.split("/")
        if parts[0] == EXPERIMENTS:
            if len(parts) > 3 and parts[2] == "train":
                groups[f"{EXPERIMENTS}/{parts[1]}/train"].append(file)
        elif len(parts) > 2:
            groups["/".join(parts[:2])].append(file)

    def unneeded(kind: str, path: str, members: Iterable[StoredFile]) -> list[Unneeded]:
        """Nothing, where any of its files is young."""
        members = list(members)
        young = any(file.path not in old for file in members)
        return [] if young or not members else [
            Unneeded(kind=kind, path=path, num_bytes=sum(file.num_bytes for file in members))
        ]  # fmt: skip

    found: list[Unneeded] = []
    needed = _needed_records(records, experiments)
    kept = [record for record in records if (record.kind, record.fingerprint) in needed]
    gone: set[str] = set()
    named = set(ATTEMPT.findall("".join([*(record.text for record in kept), *(one.text for one in experiments)])))
    for record in records:
        place = f"{record.kind}/{record.fingerprint}"
        mentioned = {name for file in groups[place] if (name := _attempt(file)) in named}
        if (record.kind, record.fingerprint) not in needed and not mentioned:
            removable = unneeded(record.kind, place, groups[place])
            found += removable
            gone |= {one.path for one in removable}
    named |= set(ATTEMPT.findall("".join(record.text for record in records)))
    for place, members in groups.items():
        if place in gone or place.startswith(f"{EXPERIMENTS}/"):
            continue
        attempts: dict[str, list[StoredFile]] = defaultdict(list)
        for file in members:
            if (attempt := _attempt(file)) is not None and attempt not in named:
                attempts[attempt].append(file)
        for attempt, of_attempt in attempts.items():
            found += unneeded("attempts", f"{place}/{attempt}", of_attempt)
    done = {record.fingerprint for record in records if record.kind == TRIAL_KIND}
    for one in experiments:
        if one.held:
            continue
        if one.planned and one.trials <= done:
            train = f"{EXPERIMENTS}/{one.name}/train"
            found += unneeded("train runs", train, groups.get(train, []))
        leases = sorted(file.path for file in files if file.path.startswith(f"{EXPERIMENTS}/{one.name}/lease/"))
        for file in files:
            if file.path in leases[:-1]:  # the newest number stays: the next driver counts on from it
                found += unneeded("leases", file.path, [file])
    return sorted(found, key=lambda one: (one.kind, one.path))


def remove(store: Store, things: Sequence[Unneeded]) -> None:
    """Remove what `find_unneeded` found: a record goes before its payload, so that none is left without."""
    for thing in things:
        if thing.kind in MODEL_OF or thing.kind in (MODEL_KIND, TRIAL_KIND):
            store.remove(*thing.path.split("/"))
        delete(join(store.url, thing.path))


def _attempt(file: StoredFile) -> str | None:
    """Name of the payload attempt that a file of `<kind>/<fingerprint>/` belongs to."""
    parts = file.path.split("/")
    return parts[2] if len(parts) > 3 and ATTEMPT.fullmatch(parts[2]) else None


def _needed_records(records: Sequence[_Record], experiments: Sequence[_Experiment]) -> set[tuple[str, str]]:
    if not all(one.planned for one in experiments):
        names = ", ".join(one.name for one in experiments if not one.planned)
        LOGGER.warning("no record is given up, since these may need any: %s (no %s)", names, RECORD)
        return {(record.kind, record.fingerprint) for record in records}
    planned = {fingerprint for one in experiments for fingerprint in one.trials}
    trials = {record.fingerprint: record for record in records if record.kind == TRIAL_KIND}
    runs = {record.fingerprint: record for record in records if record.kind == RUN_KIND}
    dense = {one.dense for one in experiments}
    unfinished = {one.dense for one in experiments if one.held or not one.trials <= trials.keys()}
    texts = [trials[fingerprint].text for fingerprint in planned & trials.keys()]
    needed_runs = {fingerprint for fingerprint in runs if any(f'"{fingerprint}"' in text for text in texts)}
    grown = True
    while grown:  # a run may begin with the model of another
        more = {
            fingerprint
            for fingerprint, run in runs.items()
            if fingerprint not in needed_runs and (run.model is None or run.model in unfinished)
        }
        unfinished |= more
        needed_runs |= more
        grown = bool(more)
    models = dense | needed_runs
    needed = set()
    for record in records:
        match record.kind:
            case "trials":
                keep = record.fingerprint in planned
            case "retrained":
                keep = record.fingerprint in needed_runs
            case "models":
                keep = record.fingerprint in dense
            case kind if kind in MODEL_OF:
                keep = record.model is None or record.model in models
            case _:
                keep = True
        if keep:
            needed.add((record.kind, record.fingerprint))
    return needed


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
        held = is_held(join(store.url, EXPERIMENTS, name))
        found.append(_Experiment(name=name, held=held, text="".join(texts), dense=dense, trials=frozenset(trials)))
    return found


def _records(store: Store, files: Sequence[StoredFile]) -> list[_Record] | None:
    """Every record of the storage; None, after a warning, where one cannot be read."""
    paths = [
        file.path
        for file in files
        if file.path.count("/") == 2 and file.path.endswith(f"/{RECORD_NAME}") and not file.path.startswith(EXPERIMENTS)
    ]

    def read(path: str) -> _Record | None:
        kind, fingerprint, _ = path.split("/")
        text = read_bytes(join(store.url, path)).decode()
        try:
            return _Record(kind=kind, fingerprint=fingerprint, text=text, identity=json.loads(text)["identity"])
        except (ValueError, KeyError, TypeError):
            LOGGER.warning("nothing is given up, since %s is no record; look at it and remove it first", path)
            return None

    with ThreadPoolExecutor(8) as threads:
        records = list(threads.map(read, paths))
    return None if None in records else [record for record in records if record is not None]
