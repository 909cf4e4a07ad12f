"""What is to be scored, and the units of work that measure it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from shortened_llm.config import CalibrationConfig, DepthPruning, ExperimentConfig, Pruning, WidthPruning
from shortened_llm.data.calibration import calibration_identity
from shortened_llm.data.sources import Documents
from shortened_llm.records import ModelRef, Narrowing, PruneUnit, Scores, num_units, units_gone, units_of
from shortened_llm.records.transform import after_export

STAGE_VERSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """A model, the criteria of one entry of `pruning`, one text, and the cuts that the scores are for."""

    model: ModelRef
    pruning: Pruning
    criteria: tuple[str, ...]
    """Those of the entry that this text is read for."""
    documents: Documents | None
    """Where a criterion reads text."""
    calibration: CalibrationConfig
    counts: tuple[int, ...]
    """Numbers of units that plans will remove, ascending. Scores depend on them only where a criterion searches."""
    calibration_label: str | None = None
    """What tells this text from those of other jobs."""
    settings_labels: dict[str, str | None] = field(default_factory=dict)
    """What tells a criterion's settings from those of other jobs."""

    @property
    def unit(self) -> PruneUnit:
        return self.pruning.unit

    @property
    def num_units(self) -> int:
        """Units that have a number; of width, which has none, the blocks."""
        blocks = self.model.num_loaded_blocks
        return num_units(self.unit, blocks) if isinstance(self.pruning, DepthPruning) else blocks

    @property
    def protected(self) -> tuple[int, ...]:
        """Units that do not go, or are gone; none of width."""
        if not isinstance(self.pruning, DepthPruning):
            return ()
        left = after_export(self.model.transforms, self.model.num_blocks)
        gone = units_gone(self.unit, left, self.model.num_loaded_blocks)
        return tuple(sorted({*protected_units(self.pruning, self.model.num_loaded_blocks), *gone}))


def scoring_jobs(
    config: ExperimentConfig, model: ModelRef, texts: Sequence[Documents], counts: Mapping[PruneUnit, tuple[int, ...]]
) -> tuple[ScoringJob, ...]:
    """What a configuration asks for: every entry of `pruning` with every calibration.

    Args:
        texts: of each calibration; none where no criterion reads text.
        counts: numbers of units that plans will remove, ascending.
    """
    jobs = []
    labels = calibration_labels(config.calibrations)
    for entry in config.prunings:
        for index, (calibration, label) in enumerate(zip(config.calibrations, labels, strict=True)):
            # What reads no text is asked of the first alone.
            criteria = tuple(name for name in entry.criteria if index == 0 or entry.reads_text(name))
            job = ScoringJob(
                model=model,
                pruning=entry,
                criteria=criteria,
                documents=texts[index] if texts else None,
                calibration=calibration,
                counts=counts.get(entry.unit, ()),
                calibration_label=label,
                settings_labels={name: settings_label(config.prunings, entry, name) for name in criteria},
            )
            jobs.append(job)
    return tuple(job for job in jobs if job.criteria)


def calibration_labels(calibrations: Sequence[CalibrationConfig]) -> tuple[str | None, ...]:
    """What tells several calibrations apart, in words; None for a single one."""
    if len(calibrations) == 1:
        return (None,)
    facts = [
        (one.label, f"seed {one.seed}", f"{one.num_sequences}x{one.sequence_length}", f"bos {one.bos}")
        for one in calibrations
    ]
    varying = [column for column in range(len(facts[0])) if len({fact[column] for fact in facts}) > 1]
    labels = [" ".join(fact[column] for column in varying) for fact in facts]
    if len(set(labels)) < len(labels):  # they differ in what has no short name, such as the directory
        labels = [f"{fact[0]} {number}" for number, fact in enumerate(facts, start=1)]
    return tuple(labels)


def settings_label(entries: Sequence[Pruning], entry: Pruning, criterion: str) -> str | None:
    """What tells one entry's removal by a criterion from that of the others, such as `protect_first=0`; None where no
    other has the criterion."""
    alike = [other for other in entries if other.unit == entry.unit and criterion in other.criteria]
    every = [other.settings(criterion) for other in alike]
    own = entry.settings(criterion)
    differing = [name for name, value in own.items() if any(other.get(name) != value for other in every)]
    return ", ".join(f"{name}={own[name]}" for name in differing) or None


def rankings(jobs: Sequence[ScoringJob]) -> tuple[tuple[str, ScoringJob], ...]:
    """Each criterion with each job that it is asked of; the calibrations of one criterion stand side by side."""
    return tuple(
        (criterion, job)
        for entry in dict.fromkeys(job.pruning for job in jobs)
        for criterion in entry.criteria
        for job in jobs
        if job.pruning == entry and criterion in job.criteria
    )


def by_ranking(scores: Sequence[Scores], jobs: Sequence[ScoringJob]) -> dict[str, ScoringJob]:
    """What each ranking is scored by; the scores are those that the jobs ask for, in their order."""
    return {one.ranking: job for one, (_, job) in zip(scores, rankings(jobs), strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One piece of work: statistics that one task measures, on a range of the calibration sequences."""

    statistics: tuple[str, ...]
    """Statistics of one walk (`one_pass`), or the one that `criterion` measures for itself."""
    criterion: str | None
    """None for a walk, which criteria share."""
    start: int
    stop: int

    @property
    def name(self) -> str:
        """A short name for logs, such as `nll+kl` or `taylor`."""
        shard = f" [{self.start}:{self.stop}]" if self.start else ""
        return "+".join(self.statistics) + shard


def work_name(unit: Unit, job: ScoringJob) -> str:
    """A short name for logs that tells the unit from those of other jobs."""
    settings = job.settings_labels.get(unit.criterion) if unit.criterion else None
    told_apart = ", ".join(part for part in (job.calibration_label if unit.stop else None, settings) if part)
    return f"{unit.name} ({told_apart})" if told_apart else unit.name


def narrowing_of(pruning: WidthPruning) -> Narrowing:
    """How an entry makes widths of scores."""
    return Narrowing(
        parts=pruning.parts,
        allocation=pruning.allocation,
        round_to=pruning.round_to,
        protect_first=pruning.protect_first,
        protect_last=pruning.protect_last,
    )


def protected_units(pruning: DepthPruning, num_blocks: int) -> tuple[int, ...]:
    """Units that no plan removes: those of the first and the last blocks, as configured."""
    last = range(max(0, num_blocks - pruning.protect_last), num_blocks)
    return units_of(pruning.unit, {*range(min(pruning.protect_first, num_blocks)), *last})


def unit_of(criterion: str, job: ScoringJob) -> Unit | None:
    """The unit that holds all that a criterion reduces, over the whole calibration set; None where nothing is
    measured."""
    row = job.pruning.rows[criterion]
    if row.statistic is None:
        return None
    return Unit(
        statistics=(row.statistic,),
        criterion=None if row.is_walked else criterion,
        start=0,
        stop=job.calibration.num_sequences if row.reads_text else 0,
    )


def shards(unit: Unit, number: int) -> tuple[Unit, ...]:
    """The unit cut into up to `number` ranges of sequences, in order and of nearly equal size."""
    size = unit.stop - unit.start
    edges = [unit.start + size * index // number for index in range(number + 1)]
    return tuple(replace(unit, start=start, stop=stop) for start, stop in pairwise(edges) if stop > start)


def identity(unit: Unit, job: ScoringJob) -> dict[str, object]:
    """Everything that a measurement's numbers depend on; for a unit with one statistic."""
    (statistic,) = unit.statistics
    row = job.pruning.rows[unit.criterion] if unit.criterion else None
    searches, reads_options = row is not None and row.searches, row is not None and row.reads_options
    text = calibration_identity(job.documents, job.calibration) | {"start": unit.start, "stop": unit.stop}
    return {
        "stage": STAGE_VERSION,
        "statistic": statistic,
        "unit": job.unit,
        "options": job.pruning.options(unit.criterion).model_dump() if unit.criterion and reads_options else None,
        "model": job.model.identity,
        "dtype": job.pruning.dtype,
        "calibration": text if unit.stop else None,
        "protected": job.protected if searches else None,
        "cuts": max(job.counts) if searches else None,
    }
