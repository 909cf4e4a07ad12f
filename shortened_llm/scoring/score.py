"""Scores of every unit by one criterion, reduced from what was measured."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import CriterionScores, Measured
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import UnitScores
from shortened_llm.scoring.confidence import resampled_cuts
from shortened_llm.scoring.job import STAGE_VERSION, ScoringJob, identity, rankings, unit_of
from shortened_llm.scoring.measure import measured
from shortened_llm.storage.layout import SCORES
from shortened_llm.storage.store import Store


def score_all(jobs: Sequence[ScoringJob], store: Store, *, num_shards: int = 1) -> tuple[UnitScores, ...]:
    """The scores that the jobs ask for, once their units of work are done."""
    return tuple(score_units(criterion, job, store, num_shards=num_shards) for criterion, job in rankings(jobs))


def score_units(criterion: str, job: ScoringJob, store: Store, *, num_shards: int = 1) -> UnitScores:
    """The scores of a criterion whose units of work are done; stored and returned.

    Raises:
        LookupError: a unit is not done.
    """
    its_identity = _identity(criterion, job)
    key = fingerprint(its_identity)
    record = store.read(SCORES, key, UnitScores)
    if record is None:
        record = replace(_reduce(criterion, job, store, num_shards), fingerprint=key)
        store.write(SCORES, key, record, identity=its_identity, parents=(job.model.fingerprint,))
    # What tells rankings apart is a matter of the configuration, not of the stored numbers.
    text = job.calibration_label if CRITERIA[criterion].reads_text else None
    return replace(record, calibration=text, settings=job.settings_labels.get(criterion))


def _reduce(criterion: str, job: ScoringJob, store: Store, num_shards: int) -> UnitScores:
    row, options = CRITERIA[criterion], job.pruning.options(criterion)

    def reduce(values: np.ndarray) -> CriterionScores:
        return row.reduce(Measured(values=values, protected=job.protected, options=options))

    values = measured(criterion, job, store, num_shards=num_shards)
    scores = reduce(values)
    tokens = job.calibration.num_sequences * job.calibration.sequence_length if row.reads_text else 0
    return UnitScores(
        criterion=criterion,
        unit=job.unit,
        scores=scores.scores,
        order=scores.order,
        sets=scores.sets,
        standard_errors=scores.standard_errors,
        cuts=resampled_cuts(values, reduce, job.counts, job.protected) if row.is_walked else None,
        protected=job.protected,
        dense_perplexity=scores.dense_perplexity,
        tokens=tokens,
        protocol=_protocol(criterion, job),
        fingerprint="",
    )


def _identity(criterion: str, job: ScoringJob) -> dict[str, object]:
    unit = unit_of(criterion, job)
    return {
        "stage": STAGE_VERSION,
        "criterion": criterion,
        "options": job.pruning.options(criterion).model_dump(),
        "measurement": None if unit is None else identity(unit, job),
        "unit": job.unit,
        "num_units": job.num_units,
        "protected": job.protected,
        "cuts": job.counts,
    }


def _protocol(criterion: str, job: ScoringJob) -> str:
    """Text, lengths, dtype and options behind the scores, in words."""
    row, calibration = CRITERIA[criterion], job.calibration
    words = []
    if row.reads_text and job.documents is not None:
        words.append(
            f"{calibration.num_sequences}x{calibration.sequence_length} tokens of {calibration.label} "
            f"({job.documents.part}), seed {calibration.seed}"
        )
    elif row.measured:
        words.append("weights only")
    if row.searches:
        words.append(f"{max(job.counts)} removals")
    if options := job.pruning.options(criterion).model_dump():
        words.append(" ".join(f"{name}={value}" for name, value in options.items()))
    return ", ".join([*words, job.pruning.dtype] if row.measured else words) or "position only"
