"""A cluster that has no node but its head until a search asks for some, and none after it."""

import time
from collections.abc import Iterator

import pytest

from tests.faults.cluster import Nodes, cluster, end_tree, start_autoscaling_head, wait_until
from tests.faults.conftest import MakeSearch
from tests.faults.searches import CHECKPOINT_STEPS, STEPS, Undisturbed
from tests.faults.table import record

SECONDS = 400


@pytest.fixture
def growing(token_environment: dict[str, str]) -> Iterator[Nodes]:
    """No node yet; up to two of 2 GPUs, which Ray only counts."""
    with cluster(token_environment) as nodes:
        start_autoscaling_head(nodes, worker={"CPU": 2, "GPU": 2}, most=2, idle_minutes=0.1)
        yield nodes


@pytest.mark.timeout(900)
def test_nodes_come_one_is_killed_another_comes_and_all_leave(
    undisturbed: Undisturbed, growing: Nodes, make_search: MakeSearch
) -> None:
    assert len(growing.raylets()) == 1
    resources = {
        "workers": 2,
        "gpus_per_worker": 1,
        "cpus_per_worker": 0.5,
        "node_groups": [{"max_nodes": 2, "cpus": 2, "gpus": 2}],
    }
    search = make_search(growing.environment, resources=resources).begin_with(undisturbed)
    finished = search.done()
    search.start()
    search.wait_for(search.checkpoints, "checkpoint of the second trial", SECONDS)

    (training,) = growing.training_nodes()
    reached = search.reached()
    killed = time.monotonic()
    end_tree(training.pid)
    search.wait_for(search.resumed_at, "new start", SECONDS)
    (resumed,) = search.resumed_at()
    search.wait_for(lambda: search.reached() > resumed, "step after it", SECONDS)
    seconds = time.monotonic() - killed
    assert reached - resumed <= 2 * CHECKPOINT_STEPS

    search.end()
    assert "training on CPU" in search.said
    # Two workers round their sums in another way than the one of the undisturbed run.
    for trial, quiet in zip(search.experiment().trials, undisturbed.experiment.trials, strict=True):
        assert trial.result is not None
        assert trial.result.runs[-1].history[-1].step == STEPS
        assert trial.after.mean_nll == pytest.approx(quiet.after.mean_nll, rel=1e-3)
    assert {name: search.done()[name] for name in finished} == finished
    assert search.trainings() == 2
    wait_until(lambda: len(growing.raylets()) == 1, "cluster without worker nodes")
    record("a node that the autoscaler started is killed", tokens_lost=search.lost_tokens(), seconds=seconds)
