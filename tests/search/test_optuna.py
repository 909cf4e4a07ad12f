"""Trials that Optuna chooses, decided from records alone."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from shortened_llm.config import parse_config
from shortened_llm.errors import BadInputError
from shortened_llm.records import TrialFailure, TrialResult, TrialSpec
from shortened_llm.retraining.schedule import learning_rate
from shortened_llm.search.preflight import check_config
from shortened_llm.search.proposals import Proposals
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.strategies import strategies
from shortened_llm.search.strategies.sampled import sampled, window
from shortened_llm.search.strategies.strategy import Candidates, Outcomes, Strategy
from shortened_llm.storage.store import Store
from tests.search.pipeline import Pipeline, small
from tests.search.test_rungs import result
from tests.search.test_space import ORDER, plans, space, space_of

__all__ = ["space"]
TRIALS = 24
OTHER_ORDER = (5, 6, 3, 4, 1, 2, 0, 7)


@pytest.fixture
def sampling(tiny_values: dict) -> dict:
    """Two targets, two methods with learning rates to find, 100 steps a trial."""
    tiny_values["search"] = {"ratios": [0.25, 0.5], "sampler": "optuna", "trials": TRIALS}
    tiny_values["retraining"] |= {
        "methods": ["cpt", "lora"], "tokens": 102_400,
        "cpt": {"learning_rate": {"low": 1e-5, "high": 1e-3}, "warmup_steps": 4},
        "lora": {"rank": {"low": 2, "high": 64}, "schedule": "wsd", "warmup_steps": 4},
    }  # fmt: skip
    return tiny_values


class Search:
    """A search whose trials end when the test says so."""

    def __init__(self, values: dict, space: SearchSpace, *orders: tuple[int, ...]) -> None:
        self.space = space_of(values, space)
        self.config = parse_config(values)
        self.candidates = Candidates(plans=plans(self.config, *(orders or (ORDER, OTHER_ORDER))))
        (self.strategy,) = strategies(self.config.search)

    def run(self, *, slots: int = 1, seed: int = 0, failing: frozenset[int] = frozenset()) -> list[TrialSpec]:
        """Every trial, in the order in which they were proposed; those that run end in random order."""
        rng = np.random.default_rng(seed)
        self.results: dict[str, TrialResult] = {}
        self.failed: set[str] = set()
        specs: dict[str, TrialSpec] = {}
        running: list[TrialSpec] = []
        while True:
            for spec in self.ask(self.strategy, specs):
                specs.setdefault(spec.fingerprint, spec)
            begun = {*self.results, *self.failed, *(spec.fingerprint for spec in running)}
            running += [spec for spec in specs.values() if spec.fingerprint not in begun][: slots - len(running)]
            if not running:
                return list(specs.values())
            ended = running.pop(int(rng.integers(len(running))))
            if list(specs).index(ended.fingerprint) in failing:
                self.failed.add(ended.fingerprint)
            else:
                self.results[ended.fingerprint] = result(ended, self.space, loss_of(ended), 0.0)

    def ask(self, strategy: Strategy, specs: dict[str, TrialSpec]) -> tuple[TrialSpec, ...]:
        outcomes = Outcomes(specs=tuple(specs.values()), results=self.results, failed=frozenset(self.failed))
        return strategy(self.space, self.candidates, outcomes)


def loss_of(spec: TrialSpec) -> float:
    """Adapters at 2e-3 are best, and a shorter model is far worse at best."""
    assert spec.learning_rate is not None
    best = 2e-3 if spec.method == "lora" else 2e-4
    worse = abs(np.log10(spec.learning_rate / best)) + (0.0 if spec.method == "lora" else 0.5)
    return 3.0 + worse + 10 * spec.plan.block_ratio - 0.2 * spec.rung


def fingerprints(specs: list[TrialSpec]) -> list[str]:
    return [spec.fingerprint for spec in specs]


def test_the_same_trials_whatever_ends_first(sampling: dict, space: SearchSpace) -> None:
    search = Search(sampling, space)
    alone = search.run()
    for slots, seed in ((1, 1), (3, 2), (16, 3)):
        assert fingerprints(search.run(slots=slots, seed=seed)) == fingerprints(alone)


def test_trials_are_distinct_and_targets_take_turns(sampling: dict, space: SearchSpace) -> None:
    """Two of the three criteria choose the same blocks: no plan of theirs is trained twice at one point."""
    found = Search(sampling, space, ORDER, ORDER, OTHER_ORDER).run()
    assert len(set(fingerprints(found))) == len(found) == TRIALS
    assert Counter(spec.plan.size.blocks for spec in found) == {6: TRIALS / 2, 4: TRIALS / 2}
    assert {spec.method for spec in found} == {"cpt", "lora"}
    assert {len(spec.plan.labels) for spec in found} == {1, 2}


def test_a_ranking_may_lack_a_target(sampling: dict, space: SearchSpace) -> None:
    """As a pattern N:M of single weights does, which has one of its own."""
    search = Search(sampling, space)
    plans = search.candidates.plans
    lacking = next(plan for plan in plans if plan.size.blocks == 6 and len(plan.labels) == 1)
    search.candidates = Candidates(plans=tuple(plan for plan in plans if plan is not lacking))
    found = search.run()
    assert len(found) == TRIALS
    assert Counter(spec.plan.size.blocks for spec in found) == {6: TRIALS / 2, 4: TRIALS / 2}
    assert lacking not in {spec.plan for spec in found}


def test_a_search_ends_with_its_last_point(sampling: dict, space: SearchSpace) -> None:
    """Two plans of each target, two rates and two seeds."""
    sampling["retraining"] |= {"methods": ["cpt"], "seed": [0, 1]}
    sampling["retraining"]["cpt"]["learning_rate"] = [1e-4, 3e-4]
    found = Search(sampling, space).run()
    grid = Search(sampling, space)
    assert set(fingerprints(found)) <= set(fingerprints(list(grid.space.trials(grid.candidates.plans))))
    assert len(found) == 16


def test_what_is_learned_at_one_size_serves_the_other(sampling: dict, space: SearchSpace) -> None:
    found = Search(sampling | {"search": sampling["search"] | {"trials": 40}}, space).run()
    for blocks in (6, 4):
        losses = [loss_of(spec) for spec in found if spec.plan.size.blocks == blocks]
        assert np.mean(losses[-7:]) < np.mean(losses[:7]) - 0.2


def test_optuna_is_told_places_failures_and_what_runs(
    sampling: dict, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling["search"] |= {"trials": 13, "rungs": [0.25, 1.0]}
    studies: list[optuna.Study] = []
    create = optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **options: studies.append(create(**options)) or studies[-1])
    search = Search(sampling, space)
    specs = [spec for spec in search.run(failing=frozenset({1, 4})) if spec.rung < 1]
    (last,) = [study for study in studies if len(study.trials) == 13]
    *told, asked = last.trials
    assert asked.state == TrialState.RUNNING
    states = [trial.state for trial in told]
    assert [number for number, state in enumerate(states) if state == TrialState.FAIL] == [1, 4]
    assert states[-window(13) :] == [TrialState.RUNNING] * window(13)
    for blocks in (6, 4):
        known = [(loss_of(spec), trial.value) for spec, trial in zip(specs, told, strict=False)
                 if spec.plan.size.blocks == blocks and trial.state == TrialState.COMPLETE]  # fmt: skip
        assert [value for _, value in sorted(known)] == pytest.approx(
            [(n + 0.5) / len(known) for n in range(len(known))]
        )


def test_rungs_promote_samples_alike_whatever_ends_first(sampling: dict, space: SearchSpace) -> None:
    sampling["search"]["rungs"] = [0.25, 1.0]
    search = Search(sampling, space)
    every = [search.run(slots=slots, seed=slots) for slots in (1, 4, 16)]
    assert all(set(fingerprints(one)) == set(fingerprints(every[0])) for one in every)
    at_rung = Counter(spec.rung for spec in every[0])
    assert at_rung[0.25] == TRIALS
    assert TRIALS // 3 <= at_rung[1.0] < TRIALS
    best = min((spec for spec in every[0] if spec.rung < 1 and spec.plan.size.blocks == 6), key=loss_of)
    assert best.learning_rate in {spec.learning_rate for spec in every[0] if spec.rung == 1}


def test_controls_have_the_middle_of_a_range(sampling: dict, space: SearchSpace) -> None:
    search = Search(sampling, space)
    (control,) = search.space.controls("random", search.candidates.plans[:1])
    assert control.learning_rate == pytest.approx(1e-4)


@pytest.mark.usefixtures("process_group")
def test_trials_train_with_what_was_chosen_and_go_on_after_a_stop(tiny_values: dict, local_store: Store) -> None:
    """Real trials; the second search knows what the first one left, and nothing else."""
    values = small(tiny_values)
    values["retraining"] |= {"methods": ["lora", "none"], "lora": {"rank": {"low": 2, "high": 16}}}
    values["search"] = {"ratios": {"low": 0.2, "high": 0.4}, "sampler": "optuna", "trials": 5}
    pipeline = Pipeline(parse_config(values), local_store)
    (ratios,) = [{spec.plan.block_ratio for spec in pipeline.specs}]
    assert ratios == {0.25, 0.375}

    def proposals() -> Proposals:
        return Proposals(
            strategies(pipeline.config.search), pipeline.space, pipeline.candidates, local_store,
            on_proposed=lambda _: None,
        )  # fmt: skip

    first = proposals()
    for _ in range(2):
        spec = first.next()
        assert spec is not None
        pipeline.trial(spec)
        first.end(spec.fingerprint, None)
    again = proposals()
    while spec := again.next():
        pipeline.trial(spec)
        again.end(spec.fingerprint, None)
    assert again.is_finished
    assert len(again.specs) == len(again.outcomes.results) == 5
    assert [spec.fingerprint for spec in again.specs][: len(first.specs)] == [spec.fingerprint for spec in first.specs]
    trained = [(spec, again.result(spec)) for spec in again.specs if spec.method == "lora"]
    assert len({spec.recipes[0].lora for spec, _ in trained}) > 1
    for spec, done in trained:
        assert done is not None
        (run,), (recipe,) = done.runs, spec.recipes
        assert run.adapter is not None
        assert recipe.lora is not None
        assert json.loads(Path(run.adapter.url, "adapter_config.json").read_text())["r"] == recipe.lora.rank
        assert run.history[-1].learning_rate == learning_rate(recipe.num_steps - 1, recipe)
        assert f"rank {recipe.lora.rank} lr {recipe.learning_rate:g} " in spec.name


def test_a_failed_trial_is_waited_for_no_longer(sampling: dict, space: SearchSpace, local_store: Store) -> None:
    search = Search(sampling, space)
    proposals = Proposals((search.strategy,), search.space, search.candidates, local_store, on_proposed=lambda _: None)
    begun: list[TrialSpec] = []
    while spec := proposals.next():
        begun.append(spec)
    assert len(begun) == window(TRIALS) + 1
    proposals.end(begun[0].fingerprint, TrialFailure(fingerprint=begun[0].fingerprint, cause="no memory"))
    assert proposals.next() is not None
    assert proposals.next() is None


def test_optuna_must_be_installed(
    sampling: dict, local_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"search.sampler: .* pip install 'shortened_llm\[optuna\]'"):
        check_config(parse_config(sampling), local_store, searches=True)
    assert not any(tmp_path.rglob("*.json"))


def test_a_choice_needs_no_result_that_is_not_there(sampling: dict, space: SearchSpace) -> None:
    search = Search(sampling, space)
    found = sampled(search.space, search.candidates, Outcomes(specs=(), results={}), trials=TRIALS)
    assert len(found.specs) == window(TRIALS) + 1
    assert not found.is_complete
    assert found.planned == TRIALS / 2
