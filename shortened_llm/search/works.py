"""What is computed for plans that hold other tensors than the model: zeros, and what makes up for what is gone."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from shortened_llm.config import WeightPruning, WidthPruning
from shortened_llm.pruning.compensation import CompensationJob
from shortened_llm.pruning.plan import Choice
from shortened_llm.pruning.weight.job import WeightsJob
from shortened_llm.pruning.weight.recipe import Recipe
from shortened_llm.pruning.weight.target import pattern_of
from shortened_llm.pruning.work import PlanWork
from shortened_llm.records import ModelSize
from shortened_llm.scoring.job import ScoringJob
from shortened_llm.storage.store import Store


def plan_works(chosen: Iterable[Choice], jobs: Mapping[str, ScoringJob], size: ModelSize) -> dict[Choice, PlanWork]:
    """What is to be computed for each choice that asks for it.

    Args:
        jobs: what each ranking is scored by.
    """
    return {one: work for one in chosen if (work := _work(one, jobs[one.label.ranking], size)) is not None}


def _work(choice: Choice, scoring: ScoringJob, size: ModelSize) -> PlanWork | None:
    entry = scoring.pruning
    if isinstance(entry, WeightPruning):
        return WeightsJob(
            model=scoring.model,
            transforms=choice.transforms,
            recipe=Recipe.of(entry, choice.label.criterion, pattern_of(entry.pattern, choice.label.target, size)),
            documents=scoring.documents,
            calibration=scoring.calibration,
            dtype=entry.dtype,
        )
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


def pending_works(wanted: Mapping[Choice, PlanWork], store: Store) -> list[tuple[str, PlanWork]]:
    """What is not stored yet, each once, with a name for logs."""
    works = {
        work.fingerprint: (f"{work.title} {one.label.ranking} {one.label.target.name}", work)
        for one, work in wanted.items()
    }
    return [(name, work) for name, work in works.values() if work.stored(store) is None]


def with_works(chosen: Iterable[Choice], wanted: Mapping[Choice, PlanWork], store: Store) -> tuple[Choice, ...]:
    """The choices with what was computed for them."""
    return tuple(_with(choice, wanted.get(choice), store) for choice in chosen)


def _with(choice: Choice, work: PlanWork | None, store: Store) -> Choice:
    if work is None:
        return choice
    found = work.stored(store)
    assert found is not None, "it was computed"
    return replace(choice, transforms=tuple(sorted((*choice.transforms, found), key=lambda one: one.kind)))
