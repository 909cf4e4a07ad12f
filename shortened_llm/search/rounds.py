"""Pruning in rounds: a target is reached step by step, and every step is chosen by the scores of the retrained model.

Scores of the dense model say little of a model that has lost a third of its blocks and learnt to do without them. The
tokens of a candidate are divided among its rounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from shortened_llm.fingerprint import fingerprint
from shortened_llm.pruning.plan import plan_of
from shortened_llm.records import (
    ModelRef,
    ModelSize,
    PrunePlan,
    Recipe,
    Rounds,
    Scores,
    UnitScores,
    removal,
    units_gone,
)
from shortened_llm.scoring.job import STAGE_VERSION, ScoringJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescoring:
    """How units are chosen, of whichever model."""

    scores: Mapping[str, UnitScores]
    """Those of the dense model, by ranking."""
    jobs: Mapping[str, ScoringJob]
    """What each ranking is scored by, its criterion alone."""
    size: ModelSize
    """That of the dense model."""

    def again(self, ranking: str, model: ModelRef, count: int) -> ScoringJob:
        """The scoring by which `count` units of another model are chosen."""
        return replace(self.jobs[ranking], model=model, counts=(count,))

    def plan(self, plan: PrunePlan, model: ModelRef) -> PrunePlan:
        """What was done to the dense model in the end, where `plan` is what its own scores chose at once."""
        return plan_of(model.shortening, plan.labels, self.size) if model.shortening else plan


def rescoring(scores: Sequence[Scores], rankings: Sequence[tuple[str, ScoringJob]], size: ModelSize) -> Rescoring:
    """Put together what rounds need.

    Args:
        rankings: each criterion with its job, in the order of the scores.
    """
    named = [one.ranking for one in scores]
    jobs = (replace(job, criteria=(criterion,)) for criterion, job in rankings)
    ranked = {one.ranking: one for one in scores if isinstance(one, UnitScores)}
    return Rescoring(scores=ranked, jobs=dict(zip(named, jobs, strict=True)), size=size)


def by_ranking(plan: PrunePlan) -> Iterator[PrunePlan]:
    """A plan once for each ranking that led to it: after the first round they may choose otherwise."""
    for ranking in dict.fromkeys(label.ranking for label in plan.labels):
        yield replace(plan, labels=tuple(label for label in plan.labels if label.ranking == ranking))


def rounds_to(plan: PrunePlan, number: int, given: Rescoring) -> Rounds:
    """Reach the plan of one ranking in so many rounds, of as equal steps as its units allow."""
    ranking = plan.labels[0].ranking
    scores = given.scores[ranking]
    gone = steps_to(len(units_gone(scores.unit, plan.transforms, plan.dense.blocks)), number)
    first = removal(scores.unit, scores.removed(gone[0]), plan.dense.blocks)
    return Rounds(gone=gone, unit=scores.unit, first=first, way=_way(given.jobs[ranking]))


def _way(job: ScoringJob) -> str:
    """Fingerprint of all that a ranking depends on but the model and the number of blocks."""
    (criterion,) = job.criteria
    reads = job.pruning.rows[criterion].reads_text
    text = {"documents": job.documents.identity if job.documents else None, "calibration": job.calibration.model_dump()}
    settings = job.pruning.settings(criterion)
    return fingerprint(
        {"stage": STAGE_VERSION, "criterion": criterion, "settings": settings, "text": text if reads else None}
    )


def steps_to(removed: int, number: int) -> tuple[int, ...]:
    """Units (count) that are gone after each of so many rounds."""
    return tuple(round(removed * (index + 1) / number) for index in range(number))


def divided(recipes: Sequence[Recipe], number: int) -> tuple[Recipe, ...]:
    """The runs of a chain once for each round, all rounds together with its steps; each warms up and decays anew, in
    shares of its own steps."""
    if number == 1:
        return tuple(recipes)
    return tuple(_part(recipe, start, stop) for start, stop in _parts(number) for recipe in recipes)


def _parts(number: int) -> Iterator[tuple[float, float]]:
    return pairwise(index / number for index in range(number + 1))


def _part(recipe: Recipe, start: float, stop: float) -> Recipe:
    steps = max(1, round(recipe.num_steps * stop) - round(recipe.num_steps * start))
    share = steps / recipe.num_steps
    warmup = min(round(recipe.warmup_steps * share), steps - 1)
    decay = max(1, min(round(recipe.decay_steps * share), steps - warmup))
    return replace(recipe, num_steps=steps, warmup_steps=warmup, decay_steps=decay)
