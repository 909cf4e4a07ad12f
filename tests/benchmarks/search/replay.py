"""Searches over recorded candidates: what would each have trained, and what would it have chosen?

Trials take the time of their tokens on one of several equal slots; a trial at a rung pays the tokens beyond the rung
below it. Candidates stand in random orders. Four searches are compared:

- grid: every candidate at the full budget.
- random: candidates at the full budget in random order, as many as cost what ours did.
- asha: asynchronous successive halving (Li et al., arXiv 1810.05934) within each target: whenever a slot is free, the
  best third of a rung so far goes up; ties are not kept.
- ours: `search/strategies/rungs.py`.
"""

import heapq
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from shortened_llm.records import EvalScores, ModelRef, PlanLabel, PrunePlan, Size, Target, TrialResult, TrialSpec
from shortened_llm.reporting.paired import paired_difference
from shortened_llm.search.strategies.rungs import propose_rungs
from shortened_llm.search.strategies.strategy import Candidates, Outcomes
from tests.benchmarks.search.grid import Point

REDUCTION = 3
Trial = tuple[int, float]
"""Candidate and rung."""
Ask = Callable[[Mapping[Trial, Point], set[Trial]], Iterable[Trial]]
"""(what has ended, what has begun) -> trials that may begin or have begun, in the order in which they shall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search spent, and how good its choice is."""

    tokens: int
    regret: float
    """Mean over targets of the chosen candidate's loss less that of the grid's best, at the full budget, in nats."""
    is_right: bool
    """Whether each choice is the grid's, or paired documents do not tell it apart from that."""
    makespan: float
    """Time until the last trial has ended, in tokens of one slot."""


class Grid:
    """Recorded candidates."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = {(point.candidate, point.rung): point for point in points}
        self.candidates = sorted({point.candidate for point in points})
        self.targets = {point.candidate: point.target for point in points}
        self.rungs = sorted({point.rung for point in points})

    def below(self, rung: float) -> float | None:
        """The rung below one; None for the lowest."""
        return next(low for low, high in pairwise((None, *self.rungs)) if high == rung)

    def new_tokens(self, trial: Trial) -> int:
        """Tokens of a trial beyond those of the rung below."""
        candidate, rung = trial
        below = self.below(rung)
        return self.points[trial].tokens - (self.points[candidate, below].tokens if below else 0)

    def judge(self, ended: Iterable[Trial], tokens: int, makespan: float) -> Outcome:
        """Judge a search by the candidates that it trained in full."""
        full = [candidate for candidate, rung in ended if rung == 1]
        regrets, right = [], []
        for target in sorted(set(self.targets.values())):
            best = min((c for c in self.candidates if self.targets[c] == target), key=self._loss)
            chosen = min((c for c in full if self.targets[c] == target), key=self._loss, default=None)
            regrets.append(math.inf if chosen is None else self._loss(chosen) - self._loss(best))
            right.append(chosen is not None and (chosen == best or not self._stands_out(chosen, best)))
        return Outcome(tokens=tokens, regret=statistics.mean(regrets), is_right=all(right), makespan=makespan)

    def _loss(self, candidate: int) -> float:
        return self.points[candidate, 1.0].loss

    def _stands_out(self, one: int, other: int) -> bool:
        difference = paired_difference([(self.points[one, 1.0].score, self.points[other, 1.0].score)])
        return difference is not None and difference.stands_out


def run(grid: Grid, ask: Ask, cost: Callable[[Trial], int], slots: int) -> Outcome:
    """Run a search; a slot that is free takes the first trial that may begin."""
    ended: dict[Trial, Point] = {}
    begun: set[Trial] = set()
    running: list[tuple[float, Trial]] = []
    now, tokens = 0.0, 0
    while True:
        for trial in ask(ended, begun):
            if trial not in begun and len(running) < slots:
                begun.add(trial)
                tokens += cost(trial)
                heapq.heappush(running, (now + cost(trial), trial))
        if not running:
            return grid.judge(ended, tokens, now)
        now, trial = heapq.heappop(running)
        ended[trial] = grid.points[trial]


def full_grid(order: Sequence[int]) -> Ask:
    return lambda ended, begun: [(candidate, 1.0) for candidate in order]


def random_part(grid: Grid, order: Sequence[int], most_tokens: int) -> Ask:
    """As many of the candidates as cost no more."""
    spent = np.cumsum([grid.points[candidate, 1.0].tokens for candidate in order])
    return full_grid([candidate for candidate, total in zip(order, spent, strict=True) if total <= most_tokens])


def asha(grid: Grid, order: Sequence[int]) -> Ask:
    """The plain rule: the highest rung with something to promote first, else a new candidate."""

    def ask(ended: Mapping[Trial, Point], begun: set[Trial]) -> Iterable[Trial]:
        for rung, above in reversed(list(pairwise(grid.rungs))):
            for target in sorted(set(grid.targets.values())):
                there = [c for c, at in ended if at == rung and grid.targets[c] == target]
                there.sort(key=lambda candidate: grid.points[candidate, rung].loss)
                yield from ((candidate, above) for candidate in there[: len(there) // REDUCTION])
        yield from ((candidate, grid.rungs[0]) for candidate in order)

    return ask


class _Recorded:
    """The search space of recorded candidates, as `propose_rungs` asks for it."""

    def __init__(self, grid: Grid, order: Sequence[int]) -> None:
        self._specs = tuple(_spec(candidate, grid.targets[candidate]) for candidate in order)

    def trials(self, plans: object) -> tuple[TrialSpec, ...]:
        return self._specs

    def at_rung(self, spec: TrialSpec, share: float) -> TrialSpec:
        return replace(spec, fingerprint=f"{spec.fingerprint}@{share}", rung=share)


def ours(grid: Grid, order: Sequence[int]) -> Ask:
    """The rule of the product, asked as the product asks it."""
    space: Any = _Recorded(grid, order)
    empty = ModelRef(url="", fingerprint="", files=(), num_blocks=0)

    def ask(ended: Mapping[Trial, Point], begun: set[Trial]) -> Iterable[Trial]:
        results = {}
        for (candidate, rung), point in ended.items():
            after = EvalScores(perplexity=(point.score,))
            results[f"{candidate}@{rung}"] = TrialResult(
                fingerprint=f"{candidate}@{rung}", model=empty, runs=(), before=EvalScores(), after=after, seconds=0.0
            )
        proposed = propose_rungs(space, Candidates(plans=()), Outcomes(specs=(), results=results), rungs=grid.rungs)
        for spec in proposed:
            candidate, _, _ = spec.fingerprint.partition("@")
            yield int(candidate), spec.rung

    return ask


def _spec(candidate: int, target: int) -> TrialSpec:
    size = Size(blocks=target, parameters=target, nonzero_parameters=target, num_bytes=target)
    label = PlanLabel(criterion="recorded", target=Target(of="blocks", ratio=0.5))
    plan = PrunePlan(transforms=(), labels=(label,), size=size, dense=size)
    return TrialSpec(fingerprint=str(candidate), plan=plan, method="recorded", recipes=())
