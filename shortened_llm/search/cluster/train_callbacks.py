"""What Ray Train's controller tells of a run: metrics of each report, and whether the workers have started.

The controller is a process of its own, so that nothing here takes time from a training step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray.train import Checkpoint, UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from shortened_llm.cluster_metrics import OF_TRIALS, Gauges
from shortened_llm.config import ResourcesConfig
from shortened_llm.metrics import ACCELERATOR_HOURS, TrialState
from shortened_llm.search.cluster.progress import Progress


def watch_callbacks(experiment: str, trial: str, resources: ResourcesConfig, progress: Progress) -> list[object]:
    """Callbacks for the training runs of a trial.

    Args:
        trial: its name in the metrics.
        progress: about the trial.
    """
    return [ReportCallback(Gauges(experiment), trial, progress), StartCallback(resources, progress)]


class ReportCallback(UserCallback):
    """Shows the values of each report as the cluster's metrics."""

    def __init__(self, gauges: Gauges, trial: str, progress: Progress) -> None:
        self._gauges, self._trial, self._progress = gauges, trial, progress

    def after_report(
        self, run_context: Any, metrics: Sequence[Mapping[str, float]], checkpoint: Checkpoint | None
    ) -> None:
        values = metrics[0]  # all workers report the same
        for name, metric in OF_TRIALS.items():
            if name in values:
                self._gauges.set(metric, values[name], trial=self._trial)
        self._progress.spend(run_context.get_run_config().name, values[ACCELERATOR_HOURS])


class Waiting(Protocol):
    """Called with what the run is doing; see `progress.Progress`."""

    def __call__(self, line: str) -> None: ...

    def wait(self, what: str, limit_seconds: float | None) -> None: ...

    def enter(self, state: TrialState) -> None: ...


class StartCallback(ControllerCallback, WorkerGroupCallback):
    """Says how long a run has been waiting for its workers, at its start and whenever it lost them.

    A group of workers that finds no room within `resources.node_wait_seconds` is asked for anew. A run with a range of
    workers first waits, without limit, until the cluster has the fewest.
    """

    def __init__(self, resources: ResourcesConfig, progress: Waiting, *, is_trial: bool = True) -> None:
        """`is_trial`: whether the run counts among the trials that wait or train."""
        self._resources, self._progress, self._is_trial = resources, progress, is_trial
        self._attempts = 0

    def after_controller_start(self, train_run_context: Any) -> None:
        self._lost_workers()

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        if failure_decision.name == "RETRY":
            self._lost_workers()

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._attempts += 1
        what = _workers(worker_group_context.num_workers, worker_group_context.resources_per_worker)
        again = f", attempt {self._attempts}" if self._attempts > 1 else ""
        self._progress.wait(what + again, self._resources.node_wait_seconds)
        self._enter("waiting")

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._attempts = 0
        self._progress(f"started {len(worker_group.get_workers())} worker(s)")
        self._enter("training")

    def _enter(self, state: TrialState) -> None:
        if self._is_trial:
            self._progress.enter(state)

    def _lost_workers(self) -> None:
        if self._resources.elastic:
            demand = {"CPU": self._resources.cpus_per_worker, "GPU": self._resources.gpus_per_worker}
            self._progress.wait(f"at least {_workers(self._resources.min_workers, demand)}", None)
            self._enter("waiting")


def _workers(count: int, demand: Mapping[str, float]) -> str:
    each = ", ".join(f"{kind}: {amount:g}" for kind, amount in demand.items() if amount)
    return f"{count} worker(s) x {{{each}}}"
