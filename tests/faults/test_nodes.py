"""Nodes that leave and nodes that come, while one run trains."""

import re
import time
from pathlib import Path

import pytest

from tests.conftest import MakeJob
from tests.faults.cluster import Nodes
from tests.faults.table import record
from tests.ray.driver import Said
from tests.ray.test_retraining import listed, order_of, start_driver, steps_of
from tests.ray.test_search import wait_for


def resumed_at(said: list[Said]) -> list[int]:
    return [int(one.line.split()[-1]) for one in said if one.line.startswith("resuming from a checkpoint at step")]


def last_step(said: list[Said]) -> int:
    steps = [int(match[1]) for one in said if (match := re.match(r"step (\d+)/", one.line))]
    return steps[-1] if steps else 0


def steps_before(said: list[Said], line: str) -> int:
    """The last step that was reported before a line that begins so."""
    (index,) = [number for number, one in enumerate(said) if one.line.startswith(line)]
    return last_step(said[:index])


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
    announced_at = time.monotonic()
    wait_for(lambda: resumed_at(order.log.read()), driver, "new start")
    seconds = time.monotonic() - announced_at
    said = order.log.read()
    (step,) = resumed_at(said)
    assert before <= step < 250
    (announced,) = [one for one in said if "will be taken away; saving a checkpoint at once" in one.line]
    steps_then = last_step(said[: said.index(announced)])
    assert step - steps_then <= 11, "the checkpoint was not made at once"
    # Until the node goes its workers train on, which is for nothing; what they had done when it was said is kept.
    lost = max(0, steps_then - step)
    assert lost == 0, "steps were done again"
    assert steps_of(driver, tmp_path)[-1] == 300
    said = order.log.read()
    assert said[-1].node != announced.node
    record("a node is announced to leave", tokens_lost=lost * 1024, seconds=seconds)


@pytest.mark.timeout(900)
def test_a_crashed_node_costs_the_steps_since_the_last_checkpoint(
    make_job: MakeJob, tmp_path: Path, nodes: Nodes
) -> None:
    nodes.add(1)
    nodes.add(1)
    order = order_of(make_job(tokens=160 * 1024, checkpoint_tokens=20 * 1024), tmp_path, {"workers": 1})
    driver = start_driver(order, tmp_path, nodes.environment)
    wait_for(lambda: listed(order) == 2, driver, "second checkpoint")
    trains = order.log.read()[-1]
    crashed_at = time.monotonic()
    nodes.node_of(trains.pid).crash()
    wait_for(lambda: resumed_at(order.log.read()), driver, "new start")
    seconds = time.monotonic() - crashed_at
    said = order.log.read()
    (step,) = resumed_at(said)
    lost = steps_before(said, "resuming") - step
    assert step % 20 == 0
    assert lost <= 2 * 20, "the newest checkpoint was not used"
    steps = steps_of(driver, tmp_path)
    assert steps == sorted(set(steps))
    assert steps[-1] == 160
    assert order.log.read()[-1].node != trains.node
    record("a node crashes", tokens_lost=lost * 1024, seconds=seconds)


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
