"""What decides which trials come next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shortened_llm.config import Control
from shortened_llm.records import PrunePlan, TrialResult, TrialSpec
from shortened_llm.search.space import SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The plans of a search."""

    plans: tuple[PrunePlan, ...]
    controls: Mapping[Control, tuple[PrunePlan, ...]] = field(default_factory=dict)
    """Plans of the comparisons that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What is known of the trials that were proposed so far."""

    specs: tuple[TrialSpec, ...]
    results: Mapping[str, TrialResult]
    """Those that have one, by the fingerprint of the trial."""
    failed: frozenset[str] = frozenset()
    """Fingerprints of those that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrants:
    """The candidates that a sampler has chosen so far."""

    specs: tuple[TrialSpec, ...]
    """At the full budget, in an order that does not depend on time."""
    is_complete: bool = True
    """Whether no other can come."""
    planned: int | None = None
    """Candidates of each target that are planned; None: those that are there."""


Sampler = Callable[[SearchSpace, Candidates, Outcomes], Entrants]
"""Which points of the search space are tried: a pure function, as a strategy is."""
Strategy = Callable[[SearchSpace, Candidates, Outcomes], tuple[TrialSpec, ...]]
"""A pure function: from equal records it proposes equal trials, so that a search that runs again needs no state."""
