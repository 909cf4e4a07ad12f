"""Every candidate with its whole budget; and the sampler whose candidates are all points of the search space."""

from shortened_llm.records import TrialSpec
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.strategies.strategy import Candidates, Entrants, Outcomes, Sampler


def every_point(space: SearchSpace, candidates: Candidates, outcomes: Outcomes) -> Entrants:
    """Every plan with every method, at every value on its axes; all of them at once."""
    return Entrants(specs=space.trials(candidates.plans))


def controls(space: SearchSpace, candidates: Candidates) -> tuple[TrialSpec, ...]:
    """The comparisons that are asked for, with their whole budget."""
    return tuple(spec for control, plans in candidates.controls.items() for spec in space.controls(control, plans))


def propose_grid(
    space: SearchSpace, candidates: Candidates, outcomes: Outcomes, *, sampler: Sampler = every_point
) -> tuple[TrialSpec, ...]:
    """Every candidate of a sampler, with its whole budget, and the controls."""
    return distinct((*sampler(space, candidates, outcomes).specs, *controls(space, candidates)))
