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
STRATEGIES: dict[str, Callable[[SearchSection], Strategy]] = {
    "grid": lambda search: partial(propose_grid, sampler=sampler(search)),
    "rungs": lambda search: partial(propose_rungs, rungs=search.rungs, sampler=sampler(search)),
    "equal_seconds": lambda search: propose_equal_seconds,
}


def sampler(search: SearchSection) -> Sampler:
    """The one that a configuration asks for."""
    return SAMPLERS[search.sampler](search)


def strategies(search: SearchSection) -> tuple[Strategy, ...]:
    """Those that a configuration asks for, in the order in which they propose."""
    names = ["rungs" if search.rungs else "grid", *(["equal_seconds"] if search.equal_seconds else [])]
    return tuple(STRATEGIES[name](search) for name in names)
