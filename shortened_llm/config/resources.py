"""The section `resources`."""

from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shortened_llm.fields import Section


def _as_range(value: object) -> object:
    """One number of workers, alone or as the command line's list of one, is the range from it to itself."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return (*values, *values) if len(values) == 1 else value


def _ascending(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("give a number of workers, or [fewest, most] with fewest at most most")
    return bounds


def _whole(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("give a whole number of GPUs, or a fraction of one")
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole)]


class NodeGroup(Section):
    """Equal nodes that an autoscaling cluster starts when they are needed."""

    max_nodes: int = Field(ge=1)
    """At most so many (count), as the cluster's own configuration says."""
    cpus: float = Field(gt=0)
    """CPUs of a node, as Ray sees them."""
    gpus: float = Field(0, ge=0)
    """GPUs of a node."""
    labels: dict[str, str] = Field({})
    """Ray labels of a node, such as {pool: evaluation}."""


class ResourcesConfig(Section):
    """Machines. Nothing here changes a number in the report."""

    workers: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
        BeforeValidator(_as_range),
        AfterValidator(_ascending),
    ] = (1, 1)
    """Training processes of one trial: a number, or [fewest, most] to take what the cluster has and follow it as it
    shrinks and grows."""
    resize_seconds: float = Field(300, gt=0)
    """How often a trial with a range of workers looks for room to grow (seconds). Growing starts the workers anew from
    the last checkpoint."""
    shard_group: int | None = Field(None, ge=1)
    """Workers over which one copy of the model is sharded, such as those of a node (HSDP); all unless given. Must
    divide the number of workers."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPUs that Ray reserves for each training process, which computes with as many threads, rounded up."""
    gpus_per_worker: float = Field(0, ge=0, le=1)
    """GPUs of each training process, which computes on one: 0 trains on CPU, and of a fraction there can be one worker.
    """
    accelerator_flops: float | None = Field(None, gt=0)
    """Peak FLOP/s of each GPU of training (of each worker on CPU) in model.dtype, such as 3.12e14 of an A100, for what
    a search will cost; read from the names of common GPUs unless given."""
    accelerator_memory_gib: float | None = Field(None, gt=0)
    """Memory of each GPU (GiB): what cannot fit is refused at the start. Unless given, that of this machine's GPUs
    where they do the work, or read from the names of common GPUs."""
    worker_labels: dict[str, str] = Field({})
    """Labels of the nodes that training processes run on, such as {pool: training}; any node unless given."""
    evaluators: int = Field(1, ge=1)
    """Evaluation processes, at most; started on demand, ended when idle."""
    cpus_per_evaluator: float = Field(0.5, gt=0)
    """CPUs that Ray reserves for each evaluation process."""
    gpus_per_evaluator: Gpus = 0
    """GPUs (or a fraction of one) of each evaluation process: a model is spread over several."""
    evaluator_labels: dict[str, str] = Field({})
    """Labels of the nodes that evaluation processes run on, such as {pool: evaluation}; any node unless given."""
    evaluation_timeout_seconds: float = Field(7200, gt=0)
    """After this long (seconds) without progress one score counts as hung: its process is replaced, and it is tried
    again."""
    cpus_per_scorer: float = Field(1, gt=0)
    """CPUs that Ray reserves for each scoring task."""
    gpus_per_scorer: Gpus = 0
    """GPUs (or a fraction) of each scoring task."""
    scoring_shards: int = Field(1, ge=1)
    """Tasks among which the calibration sequences of forward-only criteria are cut (count)."""
    scoring_memory_gib: float | None = Field(None, gt=0)
    """Memory of a scoring task for hidden states (GiB): what does not fit is walked in several passes over the
    weights. Half of the free memory of its device unless given."""
    node_groups: tuple[NodeGroup, ...] = ()
    """Nodes that the cluster starts itself, such as [{max_nodes: 8, cpus: 32, gpus: 4}]. Ray does not tell them, so
    what needs more than the running nodes and these is refused at the start."""
    node_wait_seconds: float = Field(1800, gt=0)
    """How long a trial waits for its nodes to start, and an evaluator for one that could hold it (seconds)."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g} with {self.max_workers} workers, which cannot share a "
                "GPU; give 1, or one worker"
            )
        return self

    @property
    def min_workers(self) -> int:
        """Without these no trial starts."""
        return self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers[1]

    @property
    def accelerators(self) -> float:
        """GPUs of one trial, or its workers on CPU, at most (count)."""
        return self.max_workers * (self.gpus_per_worker or 1)

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while a trial runs."""
        return self.min_workers < self.max_workers


TRIAL_DRIVER_CPUS = 0.1
"""CPUs that Ray reserves for the process that drives a trial, beside its workers; Tune refuses zero."""
DRIVER_RESOURCE = "trial_driver"
"""Custom resource of nodes that hold trial drivers instead, one each: nodes that stay, such as the head."""
