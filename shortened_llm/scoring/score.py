"""Scores of every unit by one criterion, reduced from what was measured."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shortened_llm.config import WeightPruning, WidthPruning
from shortened_llm.criteria import CRITERIA
from shortened_llm.criteria.criterion import CriterionScores, Measured
from shortened_llm.criteria.width import WIDTH_CRITERIA
from shortened_llm.criteria.width.criterion import WidthMeasured
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.axes import widths_of
from shortened_llm.models.view import view_config
from shortened_llm.records import Scores, UnitScores, WeightRanking, WidthScores, packed
from shortened_llm.scoring.confidence import resampled_cuts
from shortened_llm.scoring.job import STAGE_VERSION, ScoringJob, identity, narrowing_of, rankings, unit_of
from shortened_llm.scoring.measure import measured
from shortened_llm.storage.layout import SCORES
from shortened_llm.storage.store import Store


def score_all(jobs: Sequence[ScoringJob], store: Store, *, num_shards: int = 1) -> tuple[Scores, ...]:
    """The scores that the jobs ask for, once their units of work are done."""
    return tuple(score_one(criterion, job, store, num_shards=num_shards) for criterion, job in rankings(jobs))


def score_one(criterion: str, job: ScoringJob, store: Store, *, num_shards: int = 1) -> Scores:
    """The scores by one criterion, once its units of work are done; raises `LookupError` where they are not."""
    if isinstance(job.pruning, WeightPruning):
        text = job.calibration_label if job.pruning.reads_text(criterion) else None
        settings = job.settings_labels.get(criterion)
        return WeightRanking(criterion=criterion, pattern=job.pruning.pattern, calibration=text, settings=settings)
    if job.unit == "width":
        return score_widths(criterion, job, store)
    return score_units(criterion, job, store, num_shards=num_shards)


def score_widths(criterion: str, job: ScoringJob, store: Store) -> WidthScores:
    """The scores of heads and channels by a criterion whose unit of work is done; stored and returned.

    Raises:
        LookupError: it is not done.
    """
    assert isinstance(job.pruning, WidthPruning)
    pruning, row = job.pruning, WIDTH_CRITERIA[criterion]
    narrowing = narrowing_of(pruning)
    its_identity = {**_identity(criterion, job), "narrowing": narrowing}
    key = fingerprint(its_identity)
    record = store.read(SCORES, key, WidthScores)
    if record is None:
        widths = widths_of(view_config(job.model))
        values = measured(criterion, job, store, num_shards=1)
        groups, channels = row.reduce(
            WidthMeasured(
                values=values, groups=widths.groups, channels=widths.channels, options=pruning.options(criterion)
            )
        )
        record = WidthScores(
            criterion=criterion,
            groups=tuple(map(packed, groups.tolist())),
            channels=tuple(map(packed, channels.tolist())),
            narrowing=narrowing,
            is_standardised=row.is_standardised,
            tokens=_tokens(criterion, job),
            protocol=_protocol(criterion, job),
            fingerprint=key,
        )
        store.write(SCORES, key, record, identity=its_identity, parents=job.model.parents)
    text = job.calibration_label if pruning.reads_text(criterion) else None
    return replace(record, calibration=text, settings=job.settings_labels.get(criterion))


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
        store.write(SCORES, key, record, identity=its_identity, parents=job.model.parents)
    # What tells rankings apart is a matter of the configuration, not of the stored numbers.
    text = job.calibration_label if CRITERIA[criterion].reads_text else None
    return replace(record, calibration=text, settings=job.settings_labels.get(criterion))


def _reduce(criterion: str, job: ScoringJob, store: Store, num_shards: int) -> UnitScores:
    row, options = CRITERIA[criterion], job.pruning.options(criterion)

    def reduce(values: np.ndarray) -> CriterionScores:
        return row.reduce(Measured(values=values, protected=job.protected, options=options))

    values = measured(criterion, job, store, num_shards=num_shards)
    scores = reduce(values)
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
        tokens=_tokens(criterion, job),
        protocol=_protocol(criterion, job),
        fingerprint="",
    )


def _tokens(criterion: str, job: ScoringJob) -> int:
    reads_text = job.pruning.rows[criterion].reads_text
    return job.calibration.num_sequences * job.calibration.sequence_length if reads_text else 0


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
    row, calibration = job.pruning.rows[criterion], job.calibration
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
