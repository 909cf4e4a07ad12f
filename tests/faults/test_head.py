"""The head of the cluster is lost, and the driver with it."""

import time

import pytest

from tests.faults.cluster import Nodes
from tests.faults.conftest import MakeSearch
from tests.faults.searches import CHECKPOINT_STEPS, Undisturbed, check_whole
from tests.faults.table import record


@pytest.mark.timeout(900)
def test_the_same_command_on_a_new_head_completes(
    undisturbed: Undisturbed, nodes: Nodes, make_search: MakeSearch
) -> None:
    """The old cluster's other node lives on for a while, and so does what trains on it."""
    nodes.add(2)
    search = make_search(nodes.environment).begin_with(undisturbed)
    finished = search.done()
    search.start()
    search.wait_for(search.checkpoints, "checkpoint of the second trial")
    reached, killed = search.reached(), time.monotonic()
    nodes.started[0].crash()
    search.kill()

    nodes.start_head()
    nodes.add(2)
    search.start()
    search.wait_for(search.resumed_at, "resumed training")
    (resumed,) = search.resumed_at()
    search.wait_for(lambda: search.reached() > resumed, "step after it")
    seconds = time.monotonic() - killed
    search.end()
    assert "1 of 2 trials are done already" in search.said
    assert {name: search.done()[name] for name in finished} == finished
    assert reached - resumed <= 2 * CHECKPOINT_STEPS
    check_whole(search, undisturbed)
    record("the head and the driver are killed; a new head", tokens_lost=search.lost_tokens(), seconds=seconds)
