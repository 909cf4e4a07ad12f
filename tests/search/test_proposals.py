"""Which trial comes next."""

from dataclasses import replace

import pytest

from shortened_llm.config import ExperimentConfig
from shortened_llm.records import EvalScores, MissingScore, RetrainedModel, TrialFailure, TrialResult, TrialSpec
from shortened_llm.search.proposals import LOST, Proposals
from shortened_llm.search.space import SearchSpace, distinct
from shortened_llm.search.strategies.grid import propose_grid
from shortened_llm.search.strategies.strategy import Candidates, Outcomes, Strategy
from shortened_llm.search.trial import write_result
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.store import Store
from tests.search.test_space import ORDER, plans, space, space_of

__all__ = ["space"]


class Search:
    """A search whose trials end when the test says so, with real records in a real store."""

    def __init__(self, space: SearchSpace, candidates: Candidates, store: Store, *strategies: Strategy) -> None:
        self.space, self.store = space, store
        self.announced: list[int] = []
        self.proposals = Proposals(
            strategies or (propose_grid,), space, candidates, store,
            on_proposed=lambda proposals: self.announced.append(len(proposals.specs)),
        )  # fmt: skip

    def make_runs(self, spec: TrialSpec) -> None:
        for run in self.space.runs(spec):
            made = RetrainedModel(model=self.space.dense, tokens=1, seconds=1.0, accelerator_seconds=1.0, history=())
            self.store.write(RETRAINED, run.fingerprint, made, identity={}, parents=())

    def finish(self, spec: TrialSpec, *, after: EvalScores | None = None, failure: TrialFailure | None = None) -> None:
        self.make_runs(spec)
        result = TrialResult(
            fingerprint=spec.fingerprint, model=replace(self.space.dense, files=()), runs=(), before=EvalScores(),
            after=after or EvalScores(), seconds=1.0,
        )  # fmt: skip
        write_result(self.store, result, self.space.trial_identity(spec))
        self.proposals.end(spec.fingerprint, failure)


@pytest.fixture
def shared(tiny_values: dict, space: SearchSpace) -> SearchSpace:
    """Continued pretraining for the whole budget is a trial, and what adapters on instructions begin with."""
    return space_of(
        tiny_values, space, methods=["cpt", "cpt_lora"], instructions={"path": "pairs.jsonl", "epochs": 0.5},
        lora={"learning_rate": [1e-3, 3e-3], "train_on": ["corpus", "instructions"]},
    )  # fmt: skip


def candidates(config: ExperimentConfig) -> Candidates:
    return Candidates(plans=plans(config, ORDER))


def test_a_run_that_trials_share_is_made_once(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    search = Search(shared, candidates(tiny_config), local_store)
    begun: list[TrialSpec] = []
    while spec := search.proposals.next():
        begun.append(spec)
    assert [(spec.method, spec.train_on) for spec in begun] == [("cpt", "corpus"), ("cpt_lora", "corpus")]
    assert not search.proposals.is_finished
    search.finish(begun[0])
    after = [search.proposals.next(), search.proposals.next(), search.proposals.next()]
    # Both on instructions begin with what the first trial made; that on the corpus waits for another's.
    assert [spec and (spec.method, spec.train_on) for spec in after] == [
        ("cpt_lora", "instructions"), None, None,
    ]  # fmt: skip


def test_every_trial_runs_and_the_end_is_told(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    search = Search(shared, candidates(tiny_config), local_store)
    done = 0
    while spec := search.proposals.next():
        search.finish(spec)
        done += 1
    assert (done, search.proposals.is_finished, search.announced) == (5, True, [5])
    again = Search(shared, candidates(tiny_config), local_store)
    assert again.proposals.next() is None
    assert again.proposals.is_finished
    assert all(again.proposals.result(spec) for spec in again.proposals.specs)


def test_a_trial_fails_with_the_run_that_it_begins_with(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    search = Search(shared, candidates(tiny_config), local_store)
    first = search.proposals.next()
    assert first is not None
    search.proposals.end(first.fingerprint, TrialFailure(fingerprint=first.fingerprint, cause="no memory"))
    while spec := search.proposals.next():
        assert spec.train_on == "corpus"
        search.finish(spec)
    causes = [search.proposals.failures[spec.fingerprint].cause for spec in search.proposals.specs
              if spec.fingerprint in search.proposals.failures]  # fmt: skip
    assert causes == ["no memory"] + 2 * ["the cpt run that it begins with failed in another trial"]
    assert search.proposals.is_finished


def test_a_trial_without_record_was_lost(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    search = Search(shared, candidates(tiny_config), local_store)
    spec = search.proposals.next()
    assert spec is not None
    search.proposals.end(spec.fingerprint, None)
    assert search.proposals.failures[spec.fingerprint].cause == LOST


def test_a_result_that_lacks_scores_is_none_where_the_trial_fails(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    search = Search(shared, candidates(tiny_config), local_store)
    spec = search.proposals.next()
    assert spec is not None
    lacking = EvalScores(missing=(MissingScore(unit="u", name="wiki", cause="out of memory"),))
    for failure in (None, TrialFailure(fingerprint=spec.fingerprint, cause="no room")):
        search.finish(spec, after=lacking, failure=failure)
        assert search.proposals.failures == ({} if failure is None else {spec.fingerprint: failure})
        search = Search(shared, candidates(tiny_config), local_store)
        assert search.proposals.next() == spec  # tried again


def test_a_later_strategy_sees_every_result_of_the_earlier(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    seen: list[int] = []

    def later(space: SearchSpace, candidates: Candidates, outcomes: Outcomes) -> tuple[TrialSpec, ...]:
        seen.append(len(outcomes.results))
        return distinct(space.scaled(spec, 0.5) for spec in outcomes.specs if spec.method == "cpt")[:1]

    search = Search(shared, candidates(tiny_config), local_store, propose_grid, later)
    while spec := search.proposals.next():
        search.finish(spec)
    assert seen[0] == 5
    assert search.announced == [5, 6]
    assert search.proposals.titles[search.proposals.specs[-1].fingerprint].startswith("6/6 ")
    assert search.proposals.is_finished


def test_a_search_that_runs_again_asks_with_what_was_done_before(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    """Also where all that a strategy proposed first is done, and leads to more."""

    def step_by_step(space: SearchSpace, candidates: Candidates, outcomes: Outcomes) -> tuple[TrialSpec, ...]:
        grid = propose_grid(space, candidates, outcomes)
        return grid[: 1 + len(outcomes.results)]

    first = Search(shared, candidates(tiny_config), local_store, step_by_step)
    for _ in range(2):
        spec = first.proposals.next()
        assert spec is not None
        first.finish(spec)
    again = Search(shared, candidates(tiny_config), local_store, step_by_step)
    third = again.proposals.next()
    assert third is not None
    assert len(again.proposals.specs) == 3
    assert third == again.proposals.specs[2]


def test_controls_take_what_candidates_leave(
    tiny_config: ExperimentConfig, shared: SearchSpace, local_store: Store
) -> None:
    """They have their whole budget from the start, which a hard budget would lack for what is promoted later."""
    one = plans(tiny_config, ORDER)

    def late(space: SearchSpace, candidates: Candidates, outcomes: Outcomes) -> tuple[TrialSpec, ...]:
        first, *others = space.trials(candidates.plans)
        controls = space.controls("random", candidates.controls["random"])
        return distinct((first, *controls, *(others if outcomes.results else ())))

    by_chance = plans(tiny_config, (*ORDER[5::-1], *ORDER[6:]))
    search = Search(shared, Candidates(plans=one, controls={"random": by_chance}), local_store, late)
    order = []
    while spec := search.proposals.next():
        order.append(spec.control)
        search.finish(spec)
    assert order[0] is None
    assert "random" in order
    assert order == sorted(order, key=lambda control: control is not None)
