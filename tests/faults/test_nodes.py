"""Nodes that leave and nodes that come, while one run trains."""

import re
from pathlib import Path

import pytest

from tests.conftest import MakeJob
from tests.faults.conftest import Nodes
from tests.ray.driver import Said
from tests.ray.test_retraining import listed, order_of, start_driver, steps_of
from tests.ray.test_search import wait_for


def resumed_at(said: list[Said]) -> list[int]:
    return [int(one.line.split()[-1]) for one in said if one.line.startswith("resuming from a checkpoint at step")]


def last_step(said: list[Said]) -> int:
    steps = [int(match[1]) for one in said if (match := re.match(r"step (\d+)/", one.line))]
    return steps[-1] if steps else 0


@pytest.mark.timeout(900)
def test_an_announced_preemption_is_answered_by_a_checkpoint(make_job: MakeJob, tmp_path: Path, nodes: Nodes) -> None:
    """The only regular checkpoint would come far too late; the run goes on elsewhere from the one made for it."""
    nodes.add(1)
    nodes.add(1)
    order = order_of(make_job(tokens=300 * 1024, checkpoint_tokens=250 * 1024), tmp_path, {"workers": 1})
    driver = start_driver(order, tmp_path, nodes.environment)
    wait_for(lambda: last_step(order.log.read()) >= 10, driver, "step")
    before = last_step(order.log.read())
    nodes.announce_preemption(order.log.read()[-1].node, seconds=10)
    wait_for(lambda: resumed_at(order.log.read()), driver, "new start")
    said = order.log.read()
    (step,) = resumed_at(said)
    assert before <= step < 250
    (announced,) = [one for one in said if "will be taken away; saving a checkpoint at once" in one.line]
    steps_then = last_step(said[: said.index(announced)])
    assert step - steps_then <= 11, "the checkpoint was not made at once"
    assert steps_of(driver, tmp_path)[-1] == 300
    said = order.log.read()
    assert said[-1].node != announced.node


@pytest.mark.timeout(900)
def test_a_run_grows_with_the_cluster(make_job: MakeJob, tmp_path: Path, nodes: Nodes) -> None:
    nodes.add(1)
    resources = {"workers": [1, 2], "resize_seconds": 2}
    order = order_of(make_job(tokens=300 * 1024, checkpoint_tokens=32 * 1024), tmp_path, resources)
    driver = start_driver(order, tmp_path, nodes.environment)
    wait_for(lambda: listed(order), driver, "checkpoint")
    nodes.add(1)
    wait_for(lambda: resumed_at(order.log.read()), driver, "new start")
    starts = [one.line for one in order.log.read() if one.line.startswith("loading the model")]
    assert starts == ["loading the model in 1 worker(s)", "loading the model in 2 worker(s)"]
    assert resumed_at(order.log.read())[0] % 32 == 0
    assert steps_of(driver, tmp_path)[-1] == 300
