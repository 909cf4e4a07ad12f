"""Rungs: who goes up, from records alone."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from shortened_llm.config import ExperimentConfig, parse_config
from shortened_llm.records import EvalScores, PerplexityScore, TrialResult, TrialSpec
from shortened_llm.retraining.schedule import learning_rate, stable_end
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.strategies.rungs import left_behind, propose_rungs
from shortened_llm.search.strategies.strategy import Candidates, Outcomes
from tests.search.test_space import ORDER, plans, space, space_of

__all__ = ["space"]
RUNGS = (0.1, 0.3, 1.0)
RATES = (1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4, 9e-4)
DOCUMENTS = 16


@pytest.fixture
def nine(tiny_values: dict, space: SearchSpace) -> SearchSpace:
    """Nine candidates: one plan at nine learning rates, 100 steps each."""
    return space_of(
        tiny_values, space, tokens=102_400, cpt={"learning_rate": list(RATES), "warmup_steps": 4, "decay_ratio": 0.2}
    )


@pytest.fixture
def candidates(tiny_config: ExperimentConfig) -> Candidates:
    return Candidates(plans=plans(tiny_config, ORDER))


def result(spec: TrialSpec, space: SearchSpace, loss: float, noise: float) -> TrialResult:
    """A trial with this mean loss, whose documents differ from it as those of every other trial with its seed do."""
    rng = np.random.default_rng(int(spec.fingerprint, 16) % 2**32)
    documents = loss + noise * rng.standard_normal(DOCUMENTS)
    documents += loss - documents.mean()
    text = PerplexityScore(
        unit="u", source="t", protocol="p", perplexity=float(np.exp(loss)), mean_nll=loss, num_predictions=DOCUMENTS,
        document_nll=tuple(documents.tolist()), document_predictions=(1,) * DOCUMENTS,
    )  # fmt: skip
    after = EvalScores(perplexity=(text,))
    return TrialResult(
        fingerprint=spec.fingerprint, model=space.dense, runs=(), before=EvalScores(), after=after, seconds=1.0
    )


def states(space: SearchSpace, specs: Iterable[TrialSpec]) -> set[str]:
    """Which optimiser states the trials keep or go on from."""
    return {run.stable_fingerprint for spec in specs for run in space.runs(spec)}


def loss_of(spec: TrialSpec, best: float = 5e-4) -> float:
    """The nearer its rate to the best, the lower; more tokens help all alike."""
    assert spec.learning_rate is not None
    return 3.0 + 1000 * abs(spec.learning_rate - best) - 0.2 * spec.rung


def climb(
    space: SearchSpace,
    candidates: Candidates,
    *,
    slots: int,
    seed: int,
    noise: float = 0.0,
    failing: frozenset[float] = frozenset(),
) -> dict[float, list[float]]:
    """Run a whole search, with trials that end in random order; the learning rates that came to each rung."""
    rng = np.random.default_rng(seed)
    results: dict[str, TrialResult] = {}
    failed: set[str] = set()
    running: list[TrialSpec] = []
    specs: dict[str, TrialSpec] = {}
    while True:
        outcomes = Outcomes(specs=tuple(specs.values()), results=results, failed=frozenset(failed))
        for spec in propose_rungs(space, candidates, outcomes, rungs=RUNGS):
            specs.setdefault(spec.fingerprint, spec)
        begun = {*results, *failed, *(spec.fingerprint for spec in running)}
        waiting = [spec for spec in specs.values() if spec.fingerprint not in begun]
        running += waiting[: slots - len(running)]
        if not running:
            break
        ended = running.pop(int(rng.integers(len(running))))
        if ended.learning_rate in failing:
            failed.add(ended.fingerprint)
        else:
            results[ended.fingerprint] = result(ended, space, loss_of(ended), noise)
    found: dict[float, list[float]] = {rung: [] for rung in RUNGS}
    for spec in specs.values():
        assert spec.learning_rate is not None
        found[spec.rung].append(spec.learning_rate)
    return {rung: sorted(rates) for rung, rates in found.items()}


def test_the_best_third_goes_up_and_the_rest_stays(nine: SearchSpace, candidates: Candidates) -> None:
    found = climb(nine, candidates, slots=1, seed=0)
    assert found[0.1] == pytest.approx(RATES)
    assert set(found[0.3]) >= {4e-4, 5e-4, 6e-4}
    assert len(found[0.3]) <= 5
    assert 5e-4 in found[1.0]
    assert len(found[1.0]) <= 2


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_same_trials_whatever_ends_first(nine: SearchSpace, candidates: Candidates, noise: float) -> None:
    every = [climb(nine, candidates, slots=slots, seed=seed, noise=noise) for slots in (1, 4, 16) for seed in range(5)]
    assert all(one == every[0] for one in every)


def test_what_scores_do_not_tell_apart_goes_up_together(nine: SearchSpace, candidates: Candidates) -> None:
    """At most half as many again."""
    clear, noisy = (climb(nine, candidates, slots=1, seed=0, noise=noise) for noise in (0.0, 3.0))
    assert len(noisy[0.3]) > len(clear[0.3])
    assert len(noisy[0.3]) <= len(clear[0.3]) + 2


def test_a_failed_candidate_does_not_stop_the_others(nine: SearchSpace, candidates: Candidates) -> None:
    found = climb(nine, candidates, slots=4, seed=1, failing=frozenset({RATES[4]}))
    assert RATES[4] not in found[0.3]
    assert set(found[1.0]) & {RATES[3], RATES[5]}


def test_a_longer_rung_begins_with_the_shorter_one(nine: SearchSpace, candidates: Candidates) -> None:
    (spec, *_) = nine.trials(candidates.plans)
    short, long = nine.at_rung(spec, 0.1), nine.at_rung(spec, 0.3)
    (first,), (second,) = nine.runs(short), nine.runs(long)
    assert (short.recipes[0].num_steps, long.recipes[0].num_steps) == (10, 30)
    assert first.stable_fingerprint == second.stable_fingerprint
    assert [nine.num_kept(one) for one in (short, long, nine.at_rung(spec, 1.0))] == [1, 1, 0]
    end = stable_end(first.recipe)
    assert end == 8
    assert [learning_rate(s, first.recipe) for s in range(end)] == [learning_rate(s, second.recipe) for s in range(end)]
    assert nine.at_rung(spec, 1.0).fingerprint == spec.fingerprint


def test_state_is_kept_only_for_those_that_go_on(nine: SearchSpace, candidates: Candidates) -> None:
    grid = nine.trials(candidates.plans)
    low = {spec.learning_rate: nine.at_rung(spec, 0.1) for spec in grid}
    results: Mapping[str, TrialResult] = {s.fingerprint: result(s, nine, loss_of(s), 0.0) for s in low.values()}
    # Three of nine go up, and two that are tied at the most: the worst of six cannot.
    five, six = (dict(list(results.items())[:number]) for number in (5, 6))
    assert left_behind(nine, candidates, Outcomes(specs=(), results=five), rungs=RUNGS) == ()
    (left,) = left_behind(nine, candidates, Outcomes(specs=(), results=six), rungs=RUNGS)
    assert left.learning_rate == pytest.approx(RATES[0])
    all_left = left_behind(nine, candidates, Outcomes(specs=(), results=results), rungs=RUNGS)
    rates = {spec.learning_rate for spec in all_left}
    assert rates == set(low) - {
        spec.learning_rate
        for spec in propose_rungs(nine, candidates, Outcomes(specs=(), results=results), rungs=RUNGS)
        if spec.rung == 0.3
    }
    assert {spec.rung for spec in all_left} == {0.1}


def test_state_stays_for_a_trial_that_failed(nine: SearchSpace, candidates: Candidates) -> None:
    """The same command tries it again, and goes on from there."""
    low = [nine.at_rung(spec, 0.1) for spec in nine.trials(candidates.plans)]
    results = {spec.fingerprint: result(spec, nine, loss_of(spec), 0.0) for spec in low}
    outcomes = Outcomes(specs=(), results=results)
    risen = [spec for spec in propose_rungs(nine, candidates, outcomes, rungs=RUNGS) if spec.rung == 0.3]
    failed = Outcomes(specs=(), results=results, failed=frozenset(spec.fingerprint for spec in risen))
    assert states(nine, risen).isdisjoint(states(nine, left_behind(nine, candidates, failed, rungs=RUNGS)))


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(8))
def test_state_lasts_as_long_as_any_rung_may_go_on_from_it(
    tiny_values: dict, space: SearchSpace, candidates: Candidates, seed: int, noise: float
) -> None:
    """The trials of a candidate share it: what the second rung left must outlive the first one's decision. No
    candidate comes back whose state is gone, whatever ends first and whichever are the best."""
    rng = np.random.default_rng(seed)
    rates = [1e-4 * number for number in range(1, 19)]
    # In every other case the first half is looked at before the better ones, and goes up where all are known already.
    order = rng.permutation(len(rates)) if seed % 2 else np.arange(len(rates))[::-1]
    losses = dict(zip(rates, order.tolist(), strict=True))
    many = space_of(tiny_values, space, tokens=102_400, cpt={"learning_rate": rates, "warmup_steps": 4})
    results: dict[str, TrialResult] = {}
    gone: set[str] = set()
    while True:
        outcomes = Outcomes(specs=(), results=results)
        proposed = propose_rungs(many, candidates, outcomes, rungs=RUNGS)
        waiting = [spec for spec in proposed if spec.fingerprint not in results]
        if not waiting:
            break
        gone |= states(many, left_behind(many, candidates, outcomes, rungs=RUNGS))
        assert gone.isdisjoint(states(many, waiting))
        ended = waiting[rng.integers(len(waiting))]
        results[ended.fingerprint] = result(ended, many, losses[ended.learning_rate or 0.0] - ended.rung, noise)
    assert states(many, left_behind(many, candidates, outcomes, rungs=RUNGS)) == states(many, proposed)


def test_rungs_are_checked(tiny_values: dict) -> None:
    for rungs in ([0.3, 0.1, 1], [0.1, 0.3], [1.0], [0.0, 1.0], [0.1, 0.1, 1.0]):
        tiny_values["search"]["rungs"] = rungs
        with pytest.raises(Exception, match="rungs"):
            parse_config(tiny_values)


def test_controls_have_no_rungs(nine: SearchSpace, candidates: Candidates) -> None:
    both = replace(candidates, controls={"random": candidates.plans})
    proposed = propose_rungs(nine, both, Outcomes(specs=(), results={}), rungs=RUNGS)
    assert {(spec.control, spec.rung) for spec in proposed} == {(None, 0.1), ("random", 1.0)}
