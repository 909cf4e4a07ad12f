"""What is computed for plans that make up for what they remove."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from shortened_llm.config import WidthPruning
from shortened_llm.pruning.compensation import CompensationJob, stored_compensation
from shortened_llm.pruning.plan import Choice
from shortened_llm.scoring.job import ScoringJob
from shortened_llm.storage.store import Store


def compensations(chosen: Iterable[Choice], jobs: Mapping[str, ScoringJob]) -> dict[Choice, CompensationJob]:
    """What is to be computed for each choice that asks for it.

    Args:
        jobs: what each ranking is scored by.
    """
    return {one: job for one in chosen if (job := _job(one, jobs[one.label.ranking])) is not None}


def _job(choice: Choice, scoring: ScoringJob) -> CompensationJob | None:
    entry = scoring.pruning
    if not isinstance(entry, WidthPruning) or not entry.compensates:
        return None
    assert scoring.documents is not None, "a plan that is compensated reads text"
    return CompensationJob(
        model=scoring.model,
        transforms=choice.transforms,
        refit=entry.refit,
        bias=entry.bias,
        documents=scoring.documents,
        calibration=scoring.calibration,
        dtype=entry.dtype,
    )


def pending_compensations(wanted: Mapping[Choice, CompensationJob], store: Store) -> dict[str, CompensationJob]:
    """What is not stored yet, each model once, by a name for logs."""
    jobs = {job.fingerprint: (f"{one.label.ranking} {one.label.target.name}", job) for one, job in wanted.items()}
    return {name: job for name, job in jobs.values() if stored_compensation(job, store) is None}


def with_compensations(
    chosen: Iterable[Choice], wanted: Mapping[Choice, CompensationJob], store: Store
) -> tuple[Choice, ...]:
    """The choices with what was computed for them."""
    return tuple(_with(choice, wanted.get(choice), store) for choice in chosen)


def _with(choice: Choice, job: CompensationJob | None, store: Store) -> Choice:
    if job is None:
        return choice
    tensors = stored_compensation(job, store)
    assert tensors is not None, "it was computed"
    return replace(choice, transforms=job.model.view((*choice.transforms, tensors)).transforms)
