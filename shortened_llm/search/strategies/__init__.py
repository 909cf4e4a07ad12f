"""What decides which trials come next: one file and one row for each strategy, and for each sampler."""

from collections.abc import Callable
from functools import partial

from shortened_llm.config import SearchSection
from shortened_llm.search.strategies.equal_seconds import propose_equal_seconds
from shortened_llm.search.strategies.grid import every_point, propose_grid
from shortened_llm.search.strategies.rungs import propose_rungs
from shortened_llm.search.strategies.sampled import sampled
from shortened_llm.search.strategies.strategy import Sampler, Strategy

SAMPLERS: dict[str, Callable[[SearchSection], Sampler]] = {
    "grid": lambda search: every_point,
    "optuna": lambda search: partial(sampled, trials=search.trials or 0, rung=(*search.rungs, 1.0)[0]),
}
STRATEGIES: dict[str, Callable[[SearchSection], Strategy | None]] = {
    "grid": lambda search: None if search.rungs else partial(propose_grid, sampler=sampler(search)),
    "rungs": lambda search: (
        partial(propose_rungs, rungs=search.rungs, sampler=sampler(search)) if search.rungs else None
    ),
    "equal_seconds": lambda search: propose_equal_seconds if search.equal_seconds else None,
}
"""In the order in which they propose; None where a configuration does not ask for one."""


def sampler(search: SearchSection) -> Sampler:
    """The one that a configuration asks for."""
    return SAMPLERS[search.sampler](search)


def strategies(search: SearchSection) -> tuple[Strategy, ...]:
    """Those that a configuration asks for, in the order in which they propose."""
    found = (strategy_of(search) for strategy_of in STRATEGIES.values())
    return tuple(strategy for strategy in found if strategy is not None)
