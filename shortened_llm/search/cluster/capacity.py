"""What the cluster can hold, and whether a search fits: pure arithmetic on kinds of nodes."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shortened_llm.config import DRIVER_RESOURCE, TRIAL_DRIVER_CPUS, ExperimentConfig, NodeGroup, ResourcesConfig
from shortened_llm.errors import BadInputError

# Resources are sums of binary fractions of decimal numbers.
TOLERANCE = 1e-9
ACCELERATOR_TYPE = "ray.io/accelerator-type"
"""Ray's label of a node with the name of its GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Equal nodes."""

    resources: Mapping[str, float]
    """Resources of one of them, by Ray's names."""
    labels: Mapping[str, str] = field(default_factory=dict)
    count: int = 1

    def hold(self, demand: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """How many pieces of `demand` fit on them at a time."""
        if not labels.items() <= self.labels.items():
            return 0
        each = [self.resources.get(kind, 0) / needed for kind, needed in demand.items() if needed > 0]
        return self.count * int(min(each, default=0) + TOLERANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """All nodes that a cluster has or may start."""

    nodes: tuple[Nodes, ...]

    @classmethod
    def of(cls, running: Iterable[Nodes], groups: Iterable[NodeGroup]) -> "Capacity":
        """The running nodes, and those of groups that the cluster starts when they are needed.

        A running node that is one of a group does not count again.
        """
        possible = tuple(_nodes_of(group) for group in groups)
        others = [node for node in running if not any(_belongs(node, group) for group in possible)]
        return cls(nodes=(*others, *possible))

    def total(self, kind: str) -> float:
        return sum(node.count * node.resources.get(kind, 0) for node in self.nodes)

    def hold(self, demand: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """How many pieces of `demand` fit at a time, each on one node with these labels."""
        return sum(node.hold(demand, labels) for node in self.nodes)

    def describe(self) -> str:
        """All kinds of nodes in words."""
        return "; ".join(dict.fromkeys(_describe(node) for node in self.nodes)) or "no nodes"


def local_capacity() -> Capacity:
    """What a cluster started on this machine would hold."""
    import torch

    resources = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    labels = {ACCELERATOR_TYPE: torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}
    return Capacity(nodes=(Nodes(resources=resources, labels=labels),))


def driver_demand(capacity: Capacity) -> dict[str, float]:
    """What Ray reserves for the process that drives a trial.

    A node that will be taken away should not hold it, so where some node offers `DRIVER_RESOURCE`, it runs there.
    """
    return {DRIVER_RESOURCE: 1.0} if capacity.total(DRIVER_RESOURCE) else {"CPU": TRIAL_DRIVER_CPUS}


def check_resources(resources: ResourcesConfig, capacity: Capacity, *, scores_within_trials: bool = False) -> None:
    """Check that a trial, an evaluator and a scoring task can ever run.

    Args:
        scores_within_trials: whether a scoring task runs beside the driver of its trial, as with rounds.

    Raises:
        BadInputError: one needs more than the cluster can hold, now or when it has grown.
    """
    workers = resources.min_workers
    worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    driver = driver_demand(capacity)
    scorer = {"CPU": resources.cpus_per_scorer, "GPU": resources.gpus_per_scorer}
    beside_driver = [(f"resources.workers: {workers} workers", worker, workers)]
    if scores_within_trials:
        beside_driver.append(("resources.cpus_per_scorer: with search.rounds, a scoring task", scorer, 1))
    for what, demand, count in beside_driver:
        whole = {kind: count * demand.get(kind, 0) + driver.get(kind, 0) for kind in {*demand, *driver}}
        for kind, needed in sorted(whole.items(), reverse=True):  # GPUs first: who lacks them asks in vain for CPUs too
            if needed > capacity.total(kind) + TOLERANCE:
                why = f"need {needed:g} {kind}s, but it can hold {capacity.total(kind):g}"
                _refuse(f"{what} and the trial's driver", why, capacity)
    for what, demand, count, labels in (
        (
            "resources.workers: training workers (cpus_per_worker, gpus_per_worker)",
            worker,
            workers,
            resources.worker_labels,
        ),
        (
            "resources.evaluators: an evaluator (cpus_per_evaluator, gpus_per_evaluator)",
            {"CPU": resources.cpus_per_evaluator, "GPU": resources.gpus_per_evaluator},
            1,
            resources.evaluator_labels,
        ),
        ("resources: a scoring task (cpus_per_scorer, gpus_per_scorer)", scorer, 1, {}),
    ):
        if (room := capacity.hold(demand, labels)) < count:
            needs = " and ".join(f"{needed:g} {kind}" for kind, needed in demand.items() if needed)
            where = f" on a node with labels {labels}" if labels else " on one node"
            _refuse(what, f"need {needs} each{where}, {count} of them; there is room for {room}", capacity)


def evaluators_may_idle(config: ExperimentConfig, capacity: Capacity) -> bool:
    """Whether evaluators without work leave room for a scoring task, and for all trials at a time."""
    resources, trials = config.resources, config.search.max_concurrent_trials
    workers, driver = trials * resources.max_workers, driver_demand(capacity)
    drivers = trials * driver.get("CPU", 0)
    beside = drivers if max(config.search.rounds) > 1 else 0  # rounds score while their trials run
    cpus = max(workers * resources.cpus_per_worker + drivers, resources.cpus_per_scorer + beside)
    gpus = max(workers * resources.gpus_per_worker, resources.gpus_per_scorer)
    return (
        cpus + resources.evaluators * resources.cpus_per_evaluator <= capacity.total("CPU") + TOLERANCE
        and gpus + resources.evaluators * resources.gpus_per_evaluator <= capacity.total("GPU") + TOLERANCE
    )


def _nodes_of(group: NodeGroup) -> Nodes:
    return Nodes(resources={"CPU": group.cpus, "GPU": group.gpus}, labels=group.labels, count=group.max_nodes)


def _belongs(node: Nodes, group: Nodes) -> bool:
    same = all(node.resources.get(kind, 0) == amount for kind, amount in group.resources.items())
    return same and group.labels.items() <= node.labels.items()


def _describe(nodes: Nodes) -> str:
    amounts = [f"{nodes.resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")]
    labels = [f"{key}={value}" for key, value in nodes.labels.items() if not key.startswith("ray.io/")]
    return f"{nodes.count} x {' '.join([*amounts, *labels])}"


def _refuse(what: str, why: str, capacity: Capacity) -> None:
    raise BadInputError(
        f"{what} {why}. The cluster has {capacity.describe()}; ask for less, or, where it starts nodes itself, say in "
        "resources.node_groups which"
    )
