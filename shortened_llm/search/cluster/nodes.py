"""The nodes that run: what they hold, and whether they are alike."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.errors import BadInputError
from shortened_llm.logs import LOGGER
from shortened_llm.search.cluster.capacity import Nodes
from shortened_llm.versions import Installed, VersionsDifferError, check_equal

# Of a node that is alive but does not answer: it may be going away, and Ray will notice.
ANSWER_SECONDS = 120.0


def running_nodes() -> list[Nodes]:
    """Each node of the connected cluster that is alive."""
    return [Nodes(resources=node["Resources"], labels=node["Labels"]) for node in ray.nodes() if node["Alive"]]


def check_versions() -> None:
    """Ask each running node; those that come later are compared when training starts there.

    Raises:
        BadInputError: another Python, library or CUDA on one of them.
    """
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            uses_gpu = node["Resources"].get("GPU", 0) > 0
            asked[_installed.options(scheduling_strategy=there).remote(uses_gpu)] = node["NodeManagerAddress"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = []
    for answer in answered:
        try:
            found.append(ray.get(answer))
        except ray.exceptions.RayError as error:
            LOGGER.warning("node %s did not tell its versions (%s)", asked[answer], error)
    try:
        check_equal(found)
    except VersionsDifferError as error:
        raise BadInputError(f"cluster: {error}") from None


@ray.remote(num_cpus=0, max_retries=0)
def _installed(uses_gpu: bool) -> Installed:
    return Installed.here(uses_gpu=uses_gpu)
