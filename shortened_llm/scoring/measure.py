"""Read or compute what criteria are reduced from: arrays over calibration sequences, stored once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import BlockStatistic
from shortened_llm.criteria.width.criterion import INPUTS, OPTIMAL_BRAIN, TAYLOR, WEIGHTS
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER
from shortened_llm.models.calibration import model_tokens
from shortened_llm.models.stream import StreamedModel
from shortened_llm.records import Payload, PruneUnit
from shortened_llm.scoring.greedy_ppl import measure_greedy_ppl
from shortened_llm.scoring.job import ScoringJob, Unit, identity, shards, unit_of
from shortened_llm.scoring.magnitude import measure_magnitude
from shortened_llm.scoring.one_pass import walk_statistics
from shortened_llm.scoring.taylor import measure_taylor
from shortened_llm.scoring.width import measure_inputs, measure_optimal_brain, measure_weights, measure_width_taylor
from shortened_llm.storage import layout
from shortened_llm.storage.payload import local_directory, upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.store import Store

FILE = "values.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a criterion that measures for itself may use."""

    streamed: StreamedModel
    tokens: torch.Tensor
    """Calibration sequences, [sequences, length]; none for a criterion that reads no text."""
    options: Any
    """The criterion's own."""
    unit: PruneUnit
    """What is to be scored."""
    protected: tuple[int, ...]
    num_removed: int
    """Units that go at the largest cut."""
    memory_gib: float | None


MEASUREMENTS: dict[str, Callable[[Inputs], np.ndarray]] = {
    "taylor": lambda given: measure_taylor(given.streamed, given.tokens, given.options, memory_gib=given.memory_gib),
    "magnitude": lambda given: measure_magnitude(given.streamed, given.options),
    "greedy_ppl": lambda given: measure_greedy_ppl(
        given.streamed,
        given.tokens,
        given.protected,
        given.num_removed,
        unit=given.unit,
        memory_gib=given.memory_gib,
    ),
    INPUTS: lambda given: measure_inputs(given.streamed, given.tokens, memory_gib=given.memory_gib),
    WEIGHTS: lambda given: measure_weights(given.streamed),
    OPTIMAL_BRAIN: lambda given: measure_optimal_brain(
        given.streamed, given.tokens, given.options, memory_gib=given.memory_gib
    ),
    TAYLOR: lambda given: measure_width_taylor(
        given.streamed, given.tokens, given.options, memory_gib=given.memory_gib
    ),
}
"""What criteria measure for themselves; everything else is a statistic of the walk."""


def walked(statistics: Iterable[str]) -> list[str | BlockStatistic]:
    """What the walk is asked for: its own statistics by name, and those that criteria add to it."""
    added = {row.measured.name: row.measured for row in CRITERIA.values() if isinstance(row.measured, BlockStatistic)}
    return [added.get(name, name) for name in statistics]


def pending_work(jobs: Iterable[ScoringJob], store: Store, num_shards: int) -> tuple[tuple[Unit, ScoringJob], ...]:
    """The units that all jobs together still need, each statistic once, with the job to measure it for."""
    work: list[tuple[Unit, ScoringJob]] = []
    planned: set[str] = set()
    for job in jobs:
        for unit in pending_units(job.criteria, job, store, num_shards):
            keys = {part: fingerprint(identity(replace(unit, statistics=(part,)), job)) for part in unit.statistics}
            if new := tuple(part for part, key in keys.items() if key not in planned):
                work.append((replace(unit, statistics=new), job))
            planned |= set(keys.values())
    return tuple(work)


def pending_units(criteria: Sequence[str], job: ScoringJob, store: Store, num_shards: int) -> tuple[Unit, ...]:
    """The work that `criteria` still need, as units that may run in any order, in parallel.

    Criteria that only need a walk share one; its sequences are cut into `num_shards` units.
    """
    units: list[Unit] = []
    walks: dict[Unit, list[str]] = {}
    for criterion in criteria:
        whole = unit_of(criterion, job)
        if whole is None or _stored(whole, job, store):
            continue
        if whole.criterion is not None:
            units.append(whole)
            continue
        for shard in shards(whole, num_shards):
            if not _stored(shard, job, store):
                walks.setdefault(replace(shard, statistics=()), []).extend(shard.statistics)
    return (*units, *(replace(shard, statistics=tuple(dict.fromkeys(names))) for shard, names in walks.items()))


def measure(unit: Unit, job: ScoringJob, store: Store, *, device: str, memory_gib: float | None) -> None:
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
    for statistic, values in _values(unit, job, device, memory_gib).items():
        _keep(replace(unit, statistics=(statistic,)), values, job, store)


def _values(unit: Unit, job: ScoringJob, device: str, memory_gib: float | None) -> dict[str, np.ndarray]:
    """The array of each of the unit's statistics."""
    LOGGER.info("reading the model")
    streamed = StreamedModel.open(job.model, job.pruning.dtype, device=device)
    tokens = _tokens(unit, job, streamed) if unit.stop else torch.empty((0, 0), dtype=torch.int64)
    if unit.criterion is None:
        names = walked(unit.statistics)
        return walk_statistics(streamed, tokens, names, unit=job.unit, memory_gib=memory_gib)
    (statistic,) = unit.statistics
    given = Inputs(
        streamed=streamed,
        tokens=tokens,
        options=job.pruning.options(unit.criterion),
        unit=job.unit,
        protected=job.protected,
        num_removed=max(job.counts, default=0),
        memory_gib=memory_gib,
    )
    return {statistic: MEASUREMENTS[statistic](given)}


def _tokens(unit: Unit, job: ScoringJob, streamed: StreamedModel) -> torch.Tensor:
    """The unit's calibration sequences."""
    assert job.documents is not None, f"{unit.name} reads text"
    return model_tokens(job.model, streamed, job.documents, job.calibration)[unit.start : unit.stop]


def measured(criterion: str, job: ScoringJob, store: Store, *, num_shards: int) -> np.ndarray:
    """What a criterion is reduced from, merged from its shards where it was cut; the numbers of the units where
    nothing is measured.

    Statistics are kept per sequence, so the merge is exact: the sequences in their order.

    Raises:
        LookupError: it has not been measured.
    """
    whole = unit_of(criterion, job)
    if whole is None:
        return np.arange(job.num_units)
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
    return store.read(layout.MEASUREMENTS, fingerprint(identity(unit, job)), Payload) is not None


def _read(unit: Unit, job: ScoringJob, store: Store) -> np.ndarray | None:
    record = store.read(layout.MEASUREMENTS, fingerprint(identity(unit, job)), Payload)
    if record is None:
        return None
    return np.load(local_directory(record.url, record.files) / FILE)


def _keep(unit: Unit, values: np.ndarray, job: ScoringJob, store: Store) -> None:
    its_identity = identity(unit, job)
    key = fingerprint(its_identity)
    with temporary_directory() as temporary:
        np.save(Path(temporary) / FILE, values)
        url = store.attempt_url(layout.MEASUREMENTS, key)
        record = Payload(url=url, files=upload_directory(Path(temporary), url))
    store.write(layout.MEASUREMENTS, key, record, identity=its_identity, parents=job.model.parents)
