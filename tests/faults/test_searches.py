"""Searches that meet bad numbers, one another, or nodes that never come."""

import time
from collections.abc import Iterator

import pytest

from tests.faults.cluster import Nodes, cluster, start_autoscaling_head
from tests.faults.conftest import MakeSearch
from tests.faults.searches import STEPS, TOKENS_PER_STEP, Undisturbed, check_whole, scores
from tests.faults.table import record
from tests.ray.conftest import ROOT


@pytest.mark.timeout(900)
def test_a_batch_without_a_finite_loss_is_left_out(make_search: MakeSearch, local_environment: dict[str, str]) -> None:
    """One step has a loss of NaN."""
    faulty = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "tests.faults.bad_batch.install", "PYTHONPATH": str(ROOT)}
    search = make_search({**local_environment, **faulty}, search={"ratios": [0.25]}).start()
    search.end()
    (trial,) = search.experiment().trials
    assert trial.result is not None
    assert trial.result.runs[-1].skipped_steps == (50,)
    assert trial.result.runs[-1].history[-1].step == STEPS
    assert trial.after.mean_nll < trial.before.mean_nll
    assert "1 skipped" in search.said
    record("one batch's loss is NaN", tokens_lost=TOKENS_PER_STEP, seconds=0)


@pytest.mark.timeout(900)
def test_two_experiments_share_work_at_the_same_time(
    undisturbed: Undisturbed, nodes: Nodes, make_search: MakeSearch
) -> None:
    """The same trial under two names: both may do it, and neither may spoil the other's."""
    nodes.add(4)
    first = make_search(nodes.environment, experiment="first").begin_with(undisturbed).start()
    second = make_search(nodes.environment, experiment="second").start()
    first.end()
    second.end()
    assert scores(first.experiment()) == scores(second.experiment()) == scores(undisturbed.experiment)
    trained = first.trainings()
    assert 2 <= trained <= 3
    assert len(first.done()) == 2
    record("two experiments with the same trials at once", tokens_lost=0, trials_repeated=trained - 2, seconds=0)


@pytest.mark.timeout(900)
def test_the_same_experiment_twice_at_once_has_one_driver(
    undisturbed: Undisturbed, nodes: Nodes, make_search: MakeSearch
) -> None:
    nodes.add(2)
    drivers = [make_search(nodes.environment).begin_with(undisturbed), make_search(nodes.environment)]
    drivers[1].starts = 1  # a log of its own
    for driver in drivers:
        driver.start()
    started = time.monotonic()
    while all(driver.process.poll() is None for driver in drivers):
        time.sleep(0.2)
    seconds = time.monotonic() - started
    ended = {driver.wait(): driver for driver in drivers}
    assert sorted(ended) == [0, 2]
    assert "is being run by another driver" in ended[2].said
    check_whole(ended[0], undisturbed)
    record("one experiment is submitted twice at once", tokens_lost=0, seconds=seconds)


@pytest.fixture
def barren(token_environment: dict[str, str]) -> Iterator[Nodes]:
    """A head whose autoscaler promises two nodes of 2 GPUs, and a cloud that has none to give."""
    with cluster({**token_environment, "PYTHONPATH": str(ROOT)}) as nodes:
        provider = "tests.faults.cluster.BarrenProvider"
        start_autoscaling_head(
            nodes, worker={"CPU": 2, "GPU": 2}, most=2, idle_minutes=1, head_cpus=2, provider=provider
        )
        yield nodes


@pytest.mark.timeout(900)
def test_nodes_that_never_come_fail_the_trial_and_impossible_ones_are_refused(
    make_search: MakeSearch, barren: Nodes
) -> None:
    resources = {
        "gpus_per_worker": 1,
        "cpus_per_worker": 0.25,
        "node_wait_seconds": 10,
        "node_groups": [{"max_nodes": 2, "cpus": 2, "gpus": 2}],
    }
    for impossible in ({"workers": 8}, {"cpus_per_worker": 3}):  # more than all nodes have, more than one has
        refused = make_search(barren.environment, resources=resources | impossible).start()
        refused.end(code=2)
        assert "GPU" in refused.said
        assert not refused.storage.exists(), "something was written"
    search = make_search(barren.environment, resources=resources, search={"ratios": [0.25], "rehearsal": False}).start()
    search.wait_for(lambda: "starting training workers" in search.said, "trial")
    waits = time.monotonic()
    search.end(code=1)
    seconds = time.monotonic() - waits
    assert (
        "1 of 1 trials failed (NodesMissingError: no room for 1 worker(s) of 0.25 CPU, 1 GPU came within" in search.said
    )
    (trial,) = search.experiment().trials
    assert trial.failure is not None
    assert "node_wait_seconds (10 s)" in trial.failure
    assert seconds < 60
    record("nodes never come: the trial fails after node_wait_seconds 10", tokens_lost=0, seconds=seconds)
