"""Read or compute what criteria are reduced from: arrays over calibration sequences, stored once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shortened_llm.config import Criterion
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.families import needs_bos
from shortened_llm.models.load import load_tokenizer, model_directory
from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import FileEntry
from shortened_llm.scoring.criterion import Progress
from shortened_llm.scoring.greedy_ppl import measure_greedy_ppl
from shortened_llm.scoring.job import FREE, WALKED, ScoringJob, Unit, draws, identity, shards, unit_of
from shortened_llm.scoring.magnitude import measure_magnitude
from shortened_llm.scoring.one_pass import walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from shortened_llm.storage.payload import local_directory, upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store

KIND = "measurements"
FILE = "values.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One statistic on a range of calibration sequences, as an array in a file."""

    url: str
    files: tuple[FileEntry, ...]


def pending_units(criteria: Sequence[Criterion], job: ScoringJob, store: Store, num_shards: int) -> tuple[Unit, ...]:
    """The work that `criteria` still need, as units that may run in any order, in parallel.

    Criteria that only need a walk share one; its sequences are cut into `num_shards` units.
    """
    units: list[Unit] = []
    walks: dict[Unit, list[str]] = {}
    for criterion in criteria:
        if criterion in FREE:
            continue
        for draw in draws(criterion, job):
            whole = unit_of(criterion, job, draw)
            if _stored(whole, job, store):
                continue
            if criterion not in WALKED:
                units.append(whole)
                continue
            for shard in shards(whole, num_shards):
                if not _stored(shard, job, store):
                    walks.setdefault(replace(shard, statistics=()), []).extend(shard.statistics)
    return (*units, *(replace(shard, statistics=tuple(statistics)) for shard, statistics in walks.items()))


def measure(
    unit: Unit, job: ScoringJob, store: Store, *, device: str, memory_gib: float | None, on_progress: Progress
) -> None:
    """Do one unit of work, or what an earlier attempt left of it, and store its arrays.

    Raises:
        BadInputError: the model cannot be walked, or the text does not give the sequences.
        NonFiniteLossError: naming block and sequence.
    """
    parts = [replace(unit, statistics=(statistic,)) for statistic in unit.statistics]
    missing = tuple(part.statistics[0] for part in parts if not _stored(part, job, store))
    if not missing:
        return
    unit = replace(unit, statistics=missing)
    for statistic, values in _values(unit, job, device, memory_gib, on_progress).items():
        _keep(replace(unit, statistics=(statistic,)), values, job, store)


def _values(
    unit: Unit, job: ScoringJob, device: str, memory_gib: float | None, on_progress: Progress
) -> dict[str, np.ndarray]:
    """The array of each of the unit's statistics."""
    streamed = StreamedModel.open(job.model, job.scoring.dtype, device=device)
    name, calibration = unit.statistics[0], job.calibration
    if name == "magnitude":
        return {name: measure_magnitude(streamed, job.scoring.magnitude, on_progress=on_progress)}
    assert job.documents is not None, f"{name} reads text"
    tokens = calibration_tokens(
        job.documents,
        calibration,
        load_tokenizer(model_directory(job.model)),
        vocab_size=len(streamed.model.get_input_embeddings().weight),
        bos=needs_bos(calibration.bos, streamed.model.config.model_type),
        draw=unit.draw,
    )[unit.start : unit.stop]
    if name == "taylor":
        values = measure_taylor(streamed, tokens, job.scoring.taylor, memory_gib=memory_gib, on_progress=on_progress)
    elif name == "greedy_ppl":
        values = measure_greedy_ppl(
            streamed, tokens, job.protected, max(job.counts), memory_gib=memory_gib, on_progress=on_progress
        )
    else:
        return walk_statistics(streamed, tokens, unit.statistics, memory_gib=memory_gib, on_progress=on_progress)
    return {name: values}


def measured(criterion: Criterion, job: ScoringJob, store: Store, *, num_shards: int, draw: int = 0) -> np.ndarray:
    """What a criterion is reduced from, merged from its shards where it was cut.

    Statistics are kept per sequence, so the merge is exact: the sequences in their order.

    Raises:
        LookupError: it has not been measured.
    """
    whole = unit_of(criterion, job, draw)
    if (values := _read(whole, job, store)) is not None:
        return values
    parts = [_read(shard, job, store) for shard in shards(whole, num_shards)]
    missing = [part is None for part in parts]
    if any(missing):
        raise LookupError(f"{sum(missing)} of {len(parts)} parts of {criterion} have not been measured")
    values = np.concatenate([part for part in parts if part is not None])
    _keep(whole, values, job, store)
    return values


def _stored(unit: Unit, job: ScoringJob, store: Store) -> bool:
    return store.read(KIND, fingerprint(identity(unit, job)), Measurement) is not None


def _read(unit: Unit, job: ScoringJob, store: Store) -> np.ndarray | None:
    record = store.read(KIND, fingerprint(identity(unit, job)), Measurement)
    if record is None:
        return None
    return np.load(local_directory(record.url, record.files) / FILE)


def _keep(unit: Unit, values: np.ndarray, job: ScoringJob, store: Store) -> None:
    its_identity = identity(unit, job)
    key = fingerprint(its_identity)
    with temporary_directory() as temporary:
        np.save(Path(temporary) / FILE, values)
        url = store.attempt_url(KIND, key)
        record = Measurement(url=url, files=upload_directory(Path(temporary), url))
    store.write(KIND, key, record, identity=its_identity)
