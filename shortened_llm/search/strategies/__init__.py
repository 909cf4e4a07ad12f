"""What decides which trials come next: one file and one row for each strategy."""

from shortened_llm.config import SearchSection
from shortened_llm.search.strategies.equal_seconds import propose_equal_seconds
from shortened_llm.search.strategies.grid import propose_grid
from shortened_llm.search.strategies.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {"grid": propose_grid, "equal_seconds": propose_equal_seconds}


def strategies(search: SearchSection) -> tuple[Strategy, ...]:
    """Those that a configuration asks for, in the order in which they propose."""
    names = ("grid", "equal_seconds") if search.equal_seconds else ("grid",)
    return tuple(STRATEGIES[name] for name in names)
