"""The discrete search space and what a search needs of a cluster."""

from dataclasses import replace

import pytest

from shortened_llm.config import SearchConfig, parse_config
from shortened_llm.data.sources import text_roles
from shortened_llm.errors import BadInputError, last_line
from shortened_llm.pruning.plan import make_plans
from shortened_llm.records import BlockScores, ModelRef, ModelSize, TokenDataset
from shortened_llm.search.preflight import check_resources, evaluators_may_idle
from shortened_llm.search.prepare import selection_units
from shortened_llm.search.space import SearchSpace

TOKENS = TokenDataset(url="/tokens", fingerprint="t", files=(), num_sequences=10, sequence_length=128, num_documents=3)


@pytest.fixture
def space(tiny_config: SearchConfig, tiny_model: ModelRef) -> SearchSpace:
    return SearchSpace(
        dense=replace(tiny_model, fingerprint="dense"),
        tokens=TOKENS,
        retraining=tiny_config.retraining,
        selection=selection_units(tiny_config, text_roles(tiny_config)),
        dtype="float32",
    )


def plans(config: SearchConfig, *orders: tuple[int, ...]):
    scores = [
        BlockScores(
            criterion=f"criterion{index}", scores=(0.0,) * 8, order=order, standard_errors=None, protected=(0, 7),
            dense_perplexity=None, protocol="", fingerprint="",
        )
        for index, order in enumerate(orders)
    ]  # fmt: skip
    return make_plans(config.search, scores, ModelSize(block_parameters=(10,) * 8, other_parameters=20))


def test_one_trial_per_distinct_plan_and_learning_rate(tiny_values: dict, space: SearchSpace) -> None:
    tiny_values["retraining"]["cpt"]["learning_rate"] = [1e-4, 3e-4]
    config = parse_config(tiny_values)
    space = replace(space, retraining=config.retraining)
    trials = space.trials(plans(config, (1, 2, 3, 4, 5, 6, 0, 7), (2, 1, 3, 4, 5, 6, 0, 7), (5, 6, 1, 2, 3, 4, 0, 7)))
    assert [(trial.plan.removed_blocks, trial.learning_rate) for trial in trials] == [
        ((1, 2), 1e-4), ((1, 2), 3e-4), ((5, 6), 1e-4), ((5, 6), 3e-4),
    ]  # fmt: skip
    assert len({trial.fingerprint for trial in trials}) == 4
    assert trials[0].name == "criterion0+criterion1 25% cpt lr 0.0001"


def test_a_trial_is_what_changes_its_numbers(tiny_config: SearchConfig, space: SearchSpace) -> None:
    def fingerprint(space: SearchSpace) -> str:
        return space.trials(plans(tiny_config, (1, 2, 3, 4, 5, 6, 0, 7)))[0].fingerprint

    same = replace(space, dense=replace(space.dense, url="/elsewhere"), tokens=replace(TOKENS, url="/elsewhere"))
    assert fingerprint(same) == fingerprint(space)
    for other in (
        replace(space, dtype="bfloat16"),
        replace(space, dense=replace(space.dense, fingerprint="other")),
        replace(space, tokens=replace(TOKENS, fingerprint="other")),
        replace(space, selection=()),
    ):
        assert fingerprint(other) != fingerprint(space)


@pytest.mark.parametrize(
    ("resources", "capacity", "word"),
    [
        ({"workers": 4, "cpus_per_worker": 0.5}, {"CPU": 2.0, "GPU": 0.0}, "4 workers"),
        ({"workers": 2, "gpus_per_worker": 1}, {"CPU": 64.0, "GPU": 1.0}, "2 GPUs"),
        ({"gpus_per_evaluator": 2}, {"CPU": 64.0, "GPU": 1.0}, "an evaluator"),
        ({"cpus_per_scorer": 8}, {"CPU": 4.0, "GPU": 0.0}, "a scoring task"),
    ],
)
def test_a_demand_that_can_never_be_met_is_refused(
    resources: dict, capacity: dict, word: str, tiny_values: dict
) -> None:
    config = parse_config(tiny_values | {"resources": resources})
    with pytest.raises(BadInputError, match=word):
        check_resources(config.resources, capacity)


@pytest.mark.parametrize(("cpus", "may_idle"), [(1.6, True), (1.5, False), (64.0, True)])
def test_evaluators_stay_only_where_trials_still_fit(cpus: float, may_idle: bool, tiny_config: SearchConfig) -> None:
    assert evaluators_may_idle(tiny_config, {"CPU": cpus}) is may_idle


def test_the_last_line_of_a_remote_error_is_the_error() -> None:
    remote = RuntimeError("Training failed\n  File x\nshortened_llm.errors.NonFiniteLossError: loss is nan\n")
    assert last_line(remote) == "NonFiniteLossError: loss is nan"
    assert last_line(ValueError("plain words")) == "ValueError: plain words"
