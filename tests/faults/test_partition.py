"""The network between the head and the node that trains is cut."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeJob
from tests.faults.cluster import Nodes, cluster
from tests.faults.network import Link, bridged, why_impossible
from tests.faults.table import record
from tests.faults.test_nodes import resumed_at, steps_before
from tests.ray.test_retraining import listed, order_of, start_driver, steps_of
from tests.ray.test_search import wait_for

# A node that does not answer counts as dead after 3 s instead of a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture
def links(token_environment: dict[str, str]) -> Iterator[tuple[Nodes, list[Link]]]:
    """A head without a node, and two networks for nodes."""
    if reason := why_impossible():
        pytest.skip(reason)
    with bridged(2) as (address, cables), cluster({**token_environment, **HEALTH}, address) as nodes:
        nodes.start_head()
        yield nodes, cables


@pytest.mark.timeout(600)
def test_a_partitioned_node_is_given_up_and_the_run_goes_on_elsewhere(
    make_job: MakeJob, tmp_path: Path, links: tuple[Nodes, list[Link]]
) -> None:
    """The lost node's worker lives on; when the network heals it changes nothing of the run."""
    nodes, cables = links
    for link in cables:
        nodes.add(1, address=link.address, prefix=link.inside)
    order = order_of(make_job(tokens=160 * 1024, checkpoint_tokens=20 * 1024), tmp_path, {"workers": 1})
    driver = start_driver(order, tmp_path, nodes.environment)
    wait_for(lambda: listed(order) == 2, driver, "second checkpoint")
    trains = order.log.read()[-1]
    (link,) = [link for link in cables if link.address == nodes.node_of(trains.pid).address]
    link.down()
    cut_at = time.monotonic()
    wait_for(lambda: resumed_at(order.log.read()), driver, "new start")
    seconds = time.monotonic() - cut_at
    said = order.log.read()
    (step,) = resumed_at(said)
    lost = steps_before(said, "resuming") - step
    assert lost <= 2 * 20, "the newest checkpoint was not used"
    link.up()
    steps = steps_of(driver, tmp_path)
    assert steps == sorted(set(steps))
    assert steps[-1] == 160
    last = order.log.read()[-1]
    assert (last.pid, last.node) != (trains.pid, trains.node)
    record("the network to a node is cut", tokens_lost=lost * 1024, seconds=seconds)
