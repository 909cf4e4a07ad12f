"""Every point of the search space."""

from shortened_llm.records import TrialSpec
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.strategies.strategy import Candidates, Outcomes


def propose_grid(space: SearchSpace, candidates: Candidates, outcomes: Outcomes) -> tuple[TrialSpec, ...]:
    """Every plan with every method, learning rate, seed and budget, and the controls; all of them at once."""
    return distinct(
        (
            *space.trials(candidates.plans),
            *(spec for control, plans in candidates.controls.items() for spec in space.controls(control, plans)),
        )
    )
