"""The race of a search with rungs: how far each candidate came, why it went no further, what that saved and risked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from shortened_llm.records import Bin, Experiment, Objective, TrainingPoint, taken_over
from shortened_llm.reporting import formats
from shortened_llm.reporting.paired import Difference, objective_difference
from shortened_llm.reporting.rows import TrialRow


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point of the search space."""

    rows: tuple[TrialRow, ...]
    """Its trials, those with the fewest tokens first."""

    @property
    def last(self) -> TrialRow:
        """The trial of the highest rung that it came to."""
        return self.rows[-1]

    @cached_property
    def by_rung(self) -> dict[float, TrialRow]:
        return {row.rung: row for row in self.rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why a candidate that could have gone on did not."""

    candidate: Candidate
    kept: TrialRow | None
    """The last one kept at the same rung; None where no better one was, as where the candidate has no finite loss."""
    behind: Difference | None
    """Its loss less that one's."""
    to_best: Difference | None
    """Its loss less that of the best of the target, both at this rung."""

    @property
    def reason(self) -> str:
        """`not kept at 10 % of the tokens: behind #7, the last one kept, by +0.042 ± 0.010 nats`"""
        said = f"not kept at {formats.ratio(self.candidate.last.rung)} of the tokens"
        if self.kept is None:
            return said if self.candidate.last.loss is not None else f"{said}: no finite loss"
        unit = self.kept.trial.spec.objective.unit
        by = f", by {formats.difference(self.behind.mean, self.behind.standard_error)} {unit}" if self.behind else ""
        return f"{said}: behind #{self.kept.number}, the last one kept{by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRace:
    """The candidates of one target."""

    name: str
    """`24 of 30 blocks`."""
    candidates: tuple[Candidate, ...]
    best: TrialRow | None
    stops: tuple[Stop, ...]

    @property
    def counts(self) -> str:
        """`candidates: 6 with 10 %, 2 with 30 %, 1 with 100 % of the tokens; 1 failed`"""
        came = Counter(row.rung for one in self.candidates for row in one.rows)
        failed = sum(one.last.status == "failed" for one in self.candidates)
        said = [f"{came[rung]} with {formats.ratio(rung)}" for rung in sorted(came)]
        return f"candidates: {', '.join(said)} of the tokens" + (f"; {failed} failed" if failed else "")

    @property
    def regret(self) -> float | None:
        """How much better than the best a candidate that was stopped could have been, at most: by the lowest
        end of the 95 % intervals of their differences at the rung where each stopped. It holds if the order at that
        rung is the order at the end, but for the noise of the texts. None where a difference has no interval."""
        ends = [stop.to_best.interval if stop.to_best else None for stop in self.stops if stop.kept]
        known = [end[0] for end in ends if end is not None]
        return max([0.0, *(-low for low in known)]) if self.best and len(known) == len(ends) else None

    @property
    def risk(self) -> str:
        """The regret in words."""
        if not self.stops or self.best is None:
            return "no candidate was stopped" if not self.stops else "there is no best to compare with"
        if self.regret is None:
            return "how much better a candidate that was stopped could have been is not known"
        if self.regret == 0:
            return f"no candidate that was stopped could have been better than #{self.best.number}"
        unit = self.best.trial.spec.objective.unit
        return f"one that was stopped could have been up to {self.regret:.3f} {unit} better than #{self.best.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """All targets of a search."""

    rungs: tuple[float, ...]
    """Shares of the token budget, ascending."""
    targets: tuple[TargetRace, ...]
    tokens: float
    """Trained on by candidates, padding included: each run once, and of one that went on from another, what it added.
    Trials without a result are left out."""
    grid_tokens: int
    """What candidates that have a result would have been trained on, had each had its whole budget."""
    is_over: bool
    """Whether every trial has ended."""
    reasons: dict[int, tuple[str, ...]]
    """Why candidates that were stopped in all their targets were, by the number of their last trials."""
    lower: dict[int, tuple[TrialRow, ...]]
    """The trials of a candidate at lower rungs, by the number of its last one."""

    @property
    def saved(self) -> float:
        """Share of the grid's tokens."""
        return 1 - self.tokens / self.grid_tokens if self.grid_tokens else 0.0

    @property
    def passed(self) -> frozenset[int]:
        """Numbers of trials whose candidates came to a higher rung."""
        return frozenset(row.number for rows in self.lower.values() for row in rows)

    @property
    def greyed(self) -> frozenset[int]:
        """Numbers of trials that nobody would take."""
        return self.passed | self.reasons.keys()


def race(experiment: Experiment, rows: Sequence[TrialRow]) -> Race | None:
    """None for a search without rungs."""
    own = sorted((row for row in rows if row.trial.spec.candidate and row.learning_rates), key=lambda row: row.rung)
    if not own:
        return None
    by_candidate: dict[tuple[str, Objective], list[TrialRow]] = {}
    for row in own:
        by_candidate.setdefault((row.trial.spec.candidate, row.trial.spec.objective), []).append(row)
    candidates = [Candidate(rows=tuple(of)) for of in by_candidate.values()]
    best = {(target, row.basis): row for row in rows for target in row.best_of}
    targets = dict.fromkeys(target for row in rows for target in row.plan.targets if row in own)
    races = tuple(_target_race(experiment, target, candidates, best) for target in targets)
    stops: dict[int, list[Stop]] = {}
    for stop in (stop for one in races for stop in one.stops):
        stops.setdefault(stop.candidate.last.number, []).append(stop)
    tokens, grid_tokens = _tokens(candidates)
    return Race(
        rungs=tuple(sorted({row.rung for row in own})),
        targets=races,
        tokens=tokens,
        grid_tokens=grid_tokens,
        is_over=all(row.status in ("done", "failed") for row in own),
        reasons={
            number: tuple(dict.fromkeys(stop.reason for stop in found))
            for number, found in stops.items()
            if len(found) == len(found[0].candidate.last.plan.targets)  # else it may go on in another
        },
        lower={one.last.number: one.rows[:-1] for one in candidates},
    )


def _target_race(
    experiment: Experiment,
    target: Bin,
    candidates: Sequence[Candidate],
    best: dict[tuple[Bin, tuple[str, ...]], TrialRow],
) -> TargetRace:
    own = tuple(one for one in candidates if target in one.last.plan.targets)
    return TargetRace(
        name=formats.bin_name(target, experiment.dense_size.blocks),
        candidates=own,
        best=next((row for (of, _), row in best.items() if of == target), None),
        stops=tuple(_stops(own, {texts: row for (of, texts), row in best.items() if of == target})),
    )


def _stops(candidates: Sequence[Candidate], best: dict[tuple[str, ...], TrialRow]) -> Iterator[Stop]:
    """The candidates that were left behind at a rung from which others went on, once all of its trials have ended."""
    of_best = {row.number: one for one in candidates for row in one.rows}
    for one in candidates:
        rung, texts = one.last.rung, one.last.basis
        so_far = [row for other in candidates for row in other.rows if row.rung <= rung]
        is_decided = all(row.status in ("done", "failed") for row in so_far)
        if not is_decided or one.last.status != "done" or all(other.last.rung <= rung for other in candidates):
            continue
        rivals = [other for other in candidates if rung in other.by_rung]
        rivals = [other for other in rivals if other.by_rung[rung].basis == texts]
        ranked = sorted((o for o in rivals if o.by_rung[rung].loss is not None), key=lambda o: _loss(o, rung))
        # What went up before all had ended may lie behind others by now: the last one kept is the last before a gap.
        place = next((place for place, other in enumerate(ranked) if other.last.rung == rung), 0)
        kept = ranked[place - 1].by_rung[rung] if one in ranked and place else None
        winner = of_best.get(best[texts].number) if texts in best else None
        row = winner.by_rung.get(rung) if winner else best.get(texts)  # what trains nothing is no candidate
        yield Stop(
            candidate=one,
            kept=kept,
            behind=_difference(one.last, kept) if kept else None,
            to_best=_difference(one.last, row) if row else None,
        )


def _loss(candidate: Candidate, rung: float) -> tuple[float, str]:
    row = candidate.by_rung[rung]
    return row.loss or 0.0, row.trial.spec.fingerprint


def _difference(first: TrialRow, second: TrialRow) -> Difference | None:
    assert first.trial.result is not None
    assert second.trial.result is not None
    return objective_difference(first.trial.spec.objective, first.trial.result.after, second.trial.result.after)


def _tokens(candidates: Sequence[Candidate]) -> tuple[float, int]:
    """See `Race`."""
    paid: dict[str, float] = {}
    whole: dict[str, int] = {}
    for one in candidates:
        first_runs: dict[int, str] = {}
        seen: set[TrainingPoint] = set()
        for row in one.rows:
            spec = row.trial.spec
            for place, (recipe, run) in enumerate(zip(spec.recipes, row.runs, strict=False)):
                first_run = first_runs.setdefault(place, run.model.fingerprint)  # candidates may share it
                whole[first_run] = spec.whole_steps[place] * recipe.tokens_per_step
                if run.model.fingerprint not in paid:
                    first = taken_over(run, seen)
                    share = 1 - first.tokens / run.tokens if first and run.tokens else 1.0
                    paid[run.model.fingerprint] = share * recipe.tokens
                seen.update(run.history)
    return sum(paid.values()), sum(whole.values())
