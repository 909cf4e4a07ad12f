"""What decides which trials come next: one file and one row for each strategy."""

from collections.abc import Callable
from functools import partial

from shortened_llm.config import SearchSection
from shortened_llm.search.strategies.equal_seconds import propose_equal_seconds
from shortened_llm.search.strategies.grid import propose_grid
from shortened_llm.search.strategies.rungs import propose_rungs
from shortened_llm.search.strategies.strategy import Strategy

MakeStrategy = Callable[[SearchSection], Strategy]
STRATEGIES: dict[str, MakeStrategy] = {
    "grid": lambda search: propose_grid,
    "rungs": lambda search: partial(propose_rungs, rungs=search.rungs),
    "equal_seconds": lambda search: propose_equal_seconds,
}


def strategies(search: SearchSection) -> tuple[Strategy, ...]:
    """Those that a configuration asks for, in the order in which they propose."""
    names = ["rungs" if search.rungs else "grid", *(["equal_seconds"] if search.equal_seconds else [])]
    return tuple(STRATEGIES[name](search) for name in names)
