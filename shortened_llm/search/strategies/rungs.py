"""Short runs of every candidate, longer ones of the best: successive halving within each target, decided from records.

After Li et al., ASHA, arXiv 1810.05934, with two differences. What is promoted depends on the candidates' order alone
and never on which of them ends first, so that a search that was stopped goes on to the same end. And candidates that
the scores do not tell apart are kept together: a short run predicts a longer one only in part.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from shortened_llm.records import Bin, TrialResult, TrialSpec
from shortened_llm.reporting.paired import objective_difference
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.strategies.grid import controls, every_point
from shortened_llm.search.strategies.strategy import Candidates, Entrants, Outcomes, Sampler

REDUCTION = 3
"""One in so many goes up from a rung."""
MOST_TIES = 0.5
"""Candidates that are not told apart from the last one kept go up too, at most this share of those kept."""
ENOUGH = 0.5
"""Share of the lowest rung's candidates that must have ended before the first of them goes up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """The candidates of one target at one rung."""

    entrants: tuple[TrialSpec, ...]
    """Candidates at the full budget, in an order that does not depend on time."""
    enough: int
    """Candidates that must have ended before the first goes up; as long as others may come, it must not depend on how
    many there are by now."""
    is_closed: bool
    """Whether no other candidate can come to this rung."""
    out_of_reach: frozenset[str] = frozenset()
    """Candidates of the rung below that cannot come here any more, whatever the others do."""


def propose_rungs(
    space: SearchSpace,
    candidates: Candidates,
    outcomes: Outcomes,
    *,
    rungs: Sequence[float],
    sampler: Sampler = every_point,
) -> tuple[TrialSpec, ...]:
    """Every candidate of a sampler at the lowest rung, those that were promoted at the next ones; controls have no
    rungs."""
    entrants = sampler(space, candidates, outcomes)
    found = [space.at_rung(spec, rungs[0]) for spec in entrants.specs]
    for of_target in by_target(entrants):
        for share, rung in climbed(space, of_target, outcomes, rungs):
            found += [space.at_rung(spec, share) for spec in rung.entrants]
    lowest_first = sorted(found, key=lambda spec: spec.rung)
    return distinct((*lowest_first, *controls(space, candidates)))


def climbed(
    space: SearchSpace, entrants: Entrants, outcomes: Outcomes, rungs: Sequence[float]
) -> Iterator[tuple[float, Rung]]:
    """Each rung of one target with the candidates that have come to it so far.

    Args:
        rungs: shares of the budget, ascending.
    """
    planned = len(entrants.specs) if entrants.planned is None else entrants.planned
    enough = max(REDUCTION, math.ceil(ENOUGH * planned))
    rung = Rung(entrants=entrants.specs, enough=enough, is_closed=entrants.is_complete)
    for share in rungs:
        yield share, rung
        at_share = {spec.fingerprint: space.at_rung(spec, share).fingerprint for spec in rung.entrants}
        results = {own: outcomes.results[at] for own, at in at_share.items() if at in outcomes.results}
        failed = {own for own, at in at_share.items() if at in outcomes.failed}
        ended = results.keys() | failed
        goes_up = promoted(rung, results, ended)
        is_closed = rung.is_closed and all(spec.fingerprint in ended for spec in rung.entrants)
        beaten = frozenset(spec.fingerprint for spec in _out_of_reach(rung, results))
        rung = Rung(entrants=tuple(goes_up), enough=REDUCTION, is_closed=is_closed, out_of_reach=beaten)


def promoted(rung: Rung, results: Mapping[str, TrialResult], ended: set[str]) -> list[TrialSpec]:
    """The candidates that go up, in the order in which they were found to.

    Candidates are looked at in their own order. As soon as enough have ended, the best third of those goes up, and so
    again with each further one. At the end come those that are not told apart from the last one kept.

    Args:
        results: by the candidate's fingerprint.
        ended: fingerprints of the candidates that have a result or failed.
    """
    done = 0
    for spec in rung.entrants:
        if spec.fingerprint not in ended:
            break
        done += 1
    found: dict[str, TrialSpec] = {}
    for seen in range(rung.enough, done + 1):
        ranked = _ranked(rung.entrants[:seen], results)
        found |= {spec.fingerprint: spec for spec in ranked[: seen // REDUCTION]}
    if rung.is_closed and done == len(rung.entrants):
        ranked = _ranked(rung.entrants, results)
        kept = math.ceil(len(rung.entrants) / REDUCTION)
        found |= {spec.fingerprint: spec for spec in (*ranked[:kept], *_ties(ranked, kept, results))}
    return list(found.values())


def most_promoted(entrants: int) -> int:
    """How many of a rung's candidates go up at the most, ties included."""
    kept = math.ceil(entrants / REDUCTION)
    return kept + math.ceil(MOST_TIES * kept)


def _out_of_reach(rung: Rung, results: Mapping[str, TrialResult]) -> list[TrialSpec]:
    """Candidates to which as many are preferred already as can go up at the most: at the end, and of the first so many
    at any time before."""
    if not rung.is_closed:
        return []
    ranked = _ranked(rung.entrants, results)
    places = {spec.fingerprint: place for place, spec in enumerate(ranked)}
    in_order = [places.get(spec.fingerprint, math.inf) for spec in rung.entrants]

    def may_rise_early(place: int) -> bool:
        preferred = accumulate(other < place for other in in_order)
        firsts = range(max(rung.enough, in_order.index(place) + 1), len(in_order) + 1)
        better = dict(enumerate(preferred, 1))
        return any(better[seen] < seen // REDUCTION for seen in firsts)

    most = most_promoted(len(rung.entrants))
    return [spec for place, spec in enumerate(ranked) if place >= most and not may_rise_early(place)]


def _ranked(specs: Sequence[TrialSpec], results: Mapping[str, TrialResult]) -> list[TrialSpec]:
    """Those with a finite loss, the best first."""
    found = {spec.fingerprint: results.get(spec.fingerprint) for spec in specs}
    losses = {spec.fingerprint: _loss(spec, found[spec.fingerprint]) for spec in specs}
    finite = [spec for spec in specs if math.isfinite(losses[spec.fingerprint])]
    return sorted(finite, key=lambda spec: (losses[spec.fingerprint], spec.fingerprint))


def _loss(spec: TrialSpec, result: TrialResult | None) -> float:
    return spec.objective.loss(result.after) if result else math.nan


def _ties(ranked: Sequence[TrialSpec], kept: int, results: Mapping[str, TrialResult]) -> list[TrialSpec]:
    """Those behind the last one kept from which its loss, document by document, does not stand out."""
    if not 0 < kept < len(ranked):
        return []
    last, ties = results[ranked[kept - 1].fingerprint], list[TrialSpec]()
    for spec in ranked[kept : kept + math.ceil(MOST_TIES * kept)]:
        difference = objective_difference(spec.objective, results[spec.fingerprint].after, last.after)
        if difference is None or difference.standard_error is None or difference.stands_out:
            break
        ties.append(spec)
    return ties


def by_target(entrants: Entrants) -> list[Entrants]:
    """The candidates of each target; a plan that serves several competes in each."""
    found: dict[Bin, list[TrialSpec]] = {}
    for spec in entrants.specs:
        for target in spec.plan.targets:
            found.setdefault(target, []).append(spec)
    return [replace(entrants, specs=tuple(specs)) for specs in found.values()]


def left_behind(
    space: SearchSpace,
    candidates: Candidates,
    outcomes: Outcomes,
    *,
    rungs: Sequence[float],
    sampler: Sampler = every_point,
) -> tuple[TrialSpec, ...]:
    """The trials of candidates that will go no further: in each of their targets they cannot go up any more, or their
    next trial has a result; one that failed may be tried again. All trials of a candidate begin alike and share the
    checkpoint that the next one goes on from, so it is needed until the candidate has come as far as it will."""
    begun: dict[str, list[TrialSpec]] = {}
    needed: set[str] = set()
    for entrants in by_target(sampler(space, candidates, outcomes)):
        for (share, rung), (next_share, above) in pairwise(climbed(space, entrants, outcomes, rungs)):
            waiting = {
                spec.fingerprint
                for spec in above.entrants
                if space.at_rung(spec, next_share).fingerprint not in outcomes.results
            }
            for spec in rung.entrants:
                begun.setdefault(spec.fingerprint, []).append(space.at_rung(spec, share))
                may_rise = not above.is_closed and spec.fingerprint not in above.out_of_reach
                if spec.fingerprint in waiting or may_rise:
                    needed.add(spec.fingerprint)
    return distinct(spec for candidate, specs in begun.items() if candidate not in needed for spec in specs)
