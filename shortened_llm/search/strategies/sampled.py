"""Points of the search space that Optuna chooses by the results so far.

Targets take turns, so that none is neglected for one where losses are lower, and Optuna chooses everything else. It is
told how a candidate did within its target: the share of the target's known losses, all at one rung, that are lower. So
what it learns of criteria, methods and learning rates at one size serves the others, and their losses are never
compared.

A search that was killed must go on to the same end, and how many trials run at a time must not matter. So the choice of
candidate i depends on the results of those before i - WINDOW alone, whichever others have ended: nothing is asked while
one of these is out. The others are told as running, which keeps new points away from theirs. Optuna is asked anew each
time, with a seed that follows from i, and stores nothing.
"""

import importlib.util
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shortened_llm.errors import BadInputError
from shortened_llm.fields import Range
from shortened_llm.records import Target, TrialSpec
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.strategies.strategy import Candidates, Entrants, Outcomes

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

RANKING, METHOD, ROUNDS = "ranking", "method", "rounds"
ASKS, LEARNED_ASKS = 40, 10
"""Questions for one candidate, until the answer is not one that is there already. Optuna repeats itself where few are
left, so that only the first ones use what it has learned, and the others are random."""
DIGITS = 3
"""Significant digits of a number from a range, so that names and reports show what was trained."""


Choices = tuple[tuple[str, tuple[Any, ...] | Range[Any]], ...]
"""What Optuna chooses from, by parameter: a ranking of the blocks, a method, and for each method what its axes have."""


Chosen = tuple[tuple[str, Any], ...]
"""One choice: the value of each parameter that applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A choice, and the trial that it means."""

    chosen: Chosen
    target: Target
    spec: TrialSpec
    """At the full budget."""
    told_as: str
    """Fingerprint of its trial at the rung at which candidates are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What Optuna is told of a candidate."""

    chosen: Chosen
    place: float | None = None
    """Share of the known losses of its target that are lower; None: it failed, or runs."""
    runs: bool = False


def check_optuna() -> None:
    """Raises `BadInputError` where Optuna is not installed here."""
    if importlib.util.find_spec("optuna") is None:
        raise BadInputError(
            "search.sampler: is 'optuna', but the package optuna is not installed; pip install 'shortened_llm[optuna]'"
        )


def window(trials: int) -> int:
    """The candidates whose results a choice does without: at least so many can run at a time, and one more. A fifth of
    all, since Optuna learns from the rest."""
    return max(4, trials // 5)


def sampled(
    space: SearchSpace, candidates: Candidates, outcomes: Outcomes, *, trials: int, rung: float = 1.0
) -> Entrants:
    """The candidates that Optuna chooses, as far as results allow.

    Args:
        trials: candidates in all; one that is there already does not count. Fewer where none of the targets has a new
            one any more.
        rung: the rung at which candidates are told.
    """
    plans = {(label.target, label.ranking): plan for plan in candidates.plans for label in plan.labels}
    targets = tuple(dict.fromkeys(target for target, _ in plans))
    choices = _choices(space, tuple(dict.fromkeys(ranking for _, ranking in plans)))
    found: dict[str, Candidate] = {}
    turn = exhausted = 0
    while len(found) < trials and exhausted < len(targets):
        made = tuple(found.values())
        losses = [_loss(one, outcomes) for one in made[: max(0, len(made) - window(trials))]]
        if None in losses:
            break
        told = _told(made, [loss for loss in losses if loss is not None])
        target, exhausted = targets[turn % len(targets)], exhausted + 1
        for ask in range(ASKS):
            num_random = max(1, min(10, trials // 4)) if ask < LEARNED_ASKS else trials
            chosen = _ask(choices, told, seed=turn * ASKS + ask, num_random=num_random)
            values = dict(chosen)
            ranking, method = values[RANKING], values[METHOD]
            if (target, ranking) not in plans:  # as of a pattern N:M, which has a target of its own
                continue
            point = {field: values[_name(method, field)] for field in space.retraining.axes(method)}
            rounds = values.get(_name(method, ROUNDS), 1)
            spec = space.trial(plans[target, ranking], target, ranking, rounds, method, point)
            if spec.fingerprint not in found:  # another ranking may have led to the same plan
                told_as = space.at_rung(spec, rung).fingerprint
                found[spec.fingerprint] = Candidate(chosen=chosen, target=target, spec=spec, told_as=told_as)
                exhausted = 0
                break
        turn += 1
    return Entrants(
        specs=tuple(one.spec for one in found.values()),
        is_complete=len(found) == trials or exhausted == len(targets),
        planned=math.ceil(trials / len(targets)),
    )


def _choices(space: SearchSpace, rankings: tuple[str, ...]) -> Choices:
    methods = space.retraining.methods
    of_methods = {_name(method, field): axis for method in methods
                  for field, axis in space.retraining.axes(method).items()}  # fmt: skip
    numbers = {method: space.retraining.rounds(method, space.rounds) for method in methods}
    rounds = {_name(method, ROUNDS): those for method, those in numbers.items() if those != (1,)}
    return tuple({RANKING: rankings, METHOD: methods, **of_methods, **rounds}.items())


def _name(method: str, field: str) -> str:
    """A parameter: no two methods share one, since a rate that suits one may not suit another."""
    return f"{method}/{field}"


def _loss(one: Candidate, outcomes: Outcomes) -> float | None:
    """NaN where the trial failed; None where it has not ended."""
    if result := outcomes.results.get(one.told_as):
        return one.spec.objective.loss(result.after)
    return math.nan if one.told_as in outcomes.failed else None


def _told(made: Sequence[Candidate], losses: Sequence[float]) -> tuple[Told, ...]:
    """What Optuna is told of all candidates, of which the first have ended with these losses."""
    known: dict[Target, list[float]] = {}
    for one, loss in zip(made, losses, strict=False):
        if math.isfinite(loss):
            insort(known.setdefault(one.target, []), loss)

    def place(one: Candidate, loss: float) -> float | None:
        """A half is added, so that the only one of a target stands in the middle."""
        own = known.get(one.target, [])
        return (bisect_left(own, loss) + 0.5) / len(own) if math.isfinite(loss) else None

    ended = [Told(chosen=one.chosen, place=place(one, loss)) for one, loss in zip(made, losses, strict=False)]
    return (*ended, *(Told(chosen=one.chosen, runs=True) for one in made[len(losses) :]))


@lru_cache(maxsize=10_000)  # a strategy is asked for all candidates again and again
def _ask(choices: Choices, told: tuple[Told, ...], *, seed: int, num_random: int) -> Chosen:
    """Optuna's next choice.

    Args:
        num_random: candidates with a result, before which the choice is random.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_random))
    distributions = {name: _distribution(axis) for name, axis in choices}
    for one in told:
        ended = TrialState.FAIL if one.place is None else TrialState.COMPLETE
        params = dict(one.chosen)
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING if one.runs else ended,
                value=one.place,
                params=params,
                distributions={name: distributions[name] for name in params},
            )
        )
    trial, chosen = study.ask(), dict[str, Any]()
    for name, axis in choices:
        if name in (RANKING, METHOD) or name.startswith(f"{chosen[METHOD]}/"):
            chosen[name] = _suggest(trial, name, axis)
    return tuple(chosen.items())


def _suggest(trial: "Trial", name: str, axis: tuple[Any, ...] | Range[Any]) -> Any:
    if isinstance(axis, tuple):
        return trial.suggest_categorical(name, axis)
    if isinstance(axis.low, int):
        return trial.suggest_int(name, axis.low, axis.high, log=bool(axis.log))
    value = trial.suggest_float(name, axis.low, axis.high, log=bool(axis.log))
    return min(max(float(f"{value:.{DIGITS}g}"), axis.low), axis.high)


def _distribution(axis: tuple[Any, ...] | Range[Any]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, tuple):
        return CategoricalDistribution(axis)
    kind = IntDistribution if isinstance(axis.low, int) else FloatDistribution
    return kind(axis.low, axis.high, log=bool(axis.log))
