"""Whether what a search asks for can ever run."""

import pytest

from shortened_llm.config import ExperimentConfig, NodeGroup, parse_config
from shortened_llm.errors import BadInputError
from shortened_llm.search.cluster.capacity import Capacity, Nodes, check_resources, driver_demand, evaluators_may_idle

HEAD = Nodes(resources={"CPU": 0, "trial_driver": 16})
SMALL = Nodes(resources={"CPU": 8, "GPU": 1}, labels={"pool": "evaluation"})
BIG = {"max_nodes": 4, "cpus": 32, "gpus": 8}


def one_node(**amounts: float) -> Capacity:
    return Capacity(nodes=(Nodes(resources=amounts),))


@pytest.mark.parametrize(
    ("resources", "capacity", "words"),
    [
        ({"workers": 4, "cpus_per_worker": 0.5}, one_node(CPU=2), ["4 workers", "2.1 CPUs", "1 x 2 CPU"]),
        ({"workers": 2, "gpus_per_worker": 1}, one_node(CPU=64, GPU=1), ["2 workers", "2 GPUs"]),
        # Of what is missing, GPUs are what the user has to know of.
        ({"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 8}, one_node(CPU=2), ["need 2 GPUs", "it can hold 0"]),
        ({"gpus_per_evaluator": 2}, one_node(CPU=64, GPU=1), ["resources.evaluators", "2 GPU"]),
        ({"evaluator_labels": {"pool": "best"}}, Capacity(nodes=(SMALL,)), ["'pool': 'best'", "pool=evaluation"]),
        ({"worker_labels": {"pool": "training"}}, Capacity(nodes=(SMALL,)), ["training workers", "'pool': 'training'"]),
        ({"cpus_per_scorer": 8}, one_node(CPU=4), ["a scoring task", "8 CPU"]),
        # Enough in all, but no node has two GPUs.
        ({"gpus_per_scorer": 2}, Capacity(nodes=(SMALL, SMALL)), ["1 CPU and 2 GPU each", "room for 0"]),
        # The head drives trials, and nothing else can run there.
        ({}, Capacity(nodes=(HEAD,)), ["1 CPUs", "resources.node_groups"]),
    ],
)
def test_a_demand_that_can_never_be_met_is_refused(
    resources: dict, capacity: Capacity, words: list[str], tiny_values: dict
) -> None:
    config = parse_config(tiny_values | {"resources": resources})
    with pytest.raises(BadInputError) as caught:
        check_resources(config.resources, capacity)
    for word in words:
        assert word in str(caught.value)


def test_a_range_of_workers_needs_room_for_the_fewest(tiny_values: dict) -> None:
    resources = parse_config(tiny_values | {"resources": {"workers": [2, 8]}}).resources
    check_resources(resources, one_node(CPU=2.1))
    with pytest.raises(BadInputError, match="2 workers"):
        check_resources(resources, one_node(CPU=2.0))


def test_a_scoring_task_of_a_round_needs_room_beside_its_driver(tiny_values: dict) -> None:
    resources = parse_config(tiny_values | {"resources": {"cpus_per_scorer": 2}}).resources
    check_resources(resources, one_node(CPU=2.1))
    check_resources(resources, one_node(CPU=2.1), scores_within_trials=True)
    check_resources(resources, one_node(CPU=2.0))
    with pytest.raises(BadInputError, match=r"cpus_per_scorer: with search.rounds, .* driver need 2\.1 CPUs"):
        check_resources(resources, one_node(CPU=2.0), scores_within_trials=True)


def test_nodes_that_the_cluster_starts_itself_count(tiny_values: dict) -> None:
    """A cluster at zero: only its head runs."""
    values = {"workers": 32, "gpus_per_worker": 1, "node_groups": [BIG]}
    resources = parse_config(tiny_values | _batch(32) | {"resources": values}).resources
    check_resources(resources, Capacity.of([HEAD], resources.node_groups))
    larger = parse_config(tiny_values | _batch(33) | {"resources": values | {"workers": 33}}).resources
    with pytest.raises(BadInputError, match=r"33 GPUs, but it can hold 32"):
        check_resources(larger, Capacity.of([HEAD], larger.node_groups))


def test_a_running_node_of_a_group_does_not_count_twice() -> None:
    running = Nodes(resources={"CPU": 32, "GPU": 8, "node:10.0.0.1": 1})
    capacity = Capacity.of([HEAD, running, SMALL], [NodeGroup.model_validate(BIG)])
    assert capacity.total("GPU") == 4 * 8 + 1


def test_trial_drivers_run_where_the_cluster_has_a_place_for_them(tiny_config: ExperimentConfig) -> None:
    assert driver_demand(one_node(CPU=2)) == {"CPU": 0.1}
    assert driver_demand(Capacity(nodes=(HEAD, SMALL))) == {"trial_driver": 1.0}
    workers = Nodes(resources={"CPU": 1})
    check_resources(tiny_config.resources, Capacity(nodes=(HEAD, workers)))  # 2 x 0.5, and nothing for a driver


@pytest.mark.parametrize(("cpus", "may_idle"), [(1.6, True), (1.5, False), (64.0, True)])
def test_evaluators_stay_only_where_trials_still_fit(
    cpus: float, may_idle: bool, tiny_config: ExperimentConfig
) -> None:
    assert evaluators_may_idle(tiny_config, one_node(CPU=cpus)) is may_idle


def _batch(sequences: int) -> dict:
    return {
        "retraining": {
            "data": {"path": "corpus.jsonl"}, "tokens": 8192, "sequence_length": 128,
            "global_batch_size": sequences, "micro_batch_size": 1, "cpt": {"learning_rate": 3e-4},
        }
    }  # fmt: skip
