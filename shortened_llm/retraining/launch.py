"""Run a retraining job on the cluster."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.train import CheckpointConfig, ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from shortened_llm.config import ResourcesConfig
from shortened_llm.errors import last_line
from shortened_llm.logs import LOGGER, subject
from shortened_llm.records import RetrainedModel
from shortened_llm.retraining.interruption import Interruption
from shortened_llm.retraining.job import RetrainingJob, is_retrained
from shortened_llm.retraining.run_directory import repair_run_directory
from shortened_llm.retraining.standstill import MOST_LOST
from shortened_llm.storage.clients import ray_storage
from shortened_llm.storage.layout import RETRAINED
from shortened_llm.storage.payload import has_files
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import delete, join, read_bytes
from shortened_llm.versions import Installed

# One to resume from while the next is being uploaded, or where the next turns out damaged.
CHECKPOINTS_KEPT = 2
# A report is a barrier that Ray drains at the first interval: at its default of 2 s each report costs about that. The
# second is how long an announced loss of a node may go unnoticed, of the half minute that spot machines give at least.
INTERVALS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}


class NodesMissingError(RuntimeError):
    """The cluster had no room for the workers for as long as the user would wait."""


def retrain(
    job: RetrainingJob,
    store: Store,
    *,
    runs_url: str,
    resources: ResourcesConfig,
    max_failures: int,
    tokens_before: int,
    needs_files: bool,
    is_interrupted: bool = False,
    callbacks: Sequence[object],
) -> RetrainedModel:
    """The retrained model: read back, or trained from the run's last checkpoint, or from the start.

    Args:
        runs_url: directory of this experiment's Train runs. The run's name in it ends in the job's fingerprint:
            that is what makes it resume, so no other driver may use the directory.
        tokens_before: of the runs that this one follows in a trial, for the metrics.
        needs_files: whether a model that was trained, and whose files are gone, is trained again.
        is_interrupted: whether the run loses its workers once: see `Interruption`.
        callbacks: Ray Train callbacks of the caller, for metrics.

    Raises:
        NodesMissingError: there is no room for the workers.
    """
    run_url = join(runs_url, job.run.name)
    if _known(job, store, needs_files=needs_files) is None:
        for fault in repair_run_directory(run_url, num_to_keep=CHECKPOINTS_KEPT):
            LOGGER.warning("run directory put in order: %s", fault)
        failure_url, beginnings_url = f"{run_url}.failure.json", join(run_url, "beginnings.json")
        delete(failure_url)
        worker_config = {
            "job": job,
            "store": store,
            "subject": subject(),
            "threads": math.ceil(resources.cpus_per_worker),
            "shard_group": resources.shard_group,
            "accelerators": resources.gpus_per_worker or 1.0,
            "tokens_before": tokens_before,
            "failure_url": failure_url,
            "beginnings_url": beginnings_url,
            "most_lost": max(MOST_LOST, max_failures + 1),
            "interruption": Interruption(f"{run_url}.interrupted") if is_interrupted else None,
            "installed": Installed.here(uses_gpu=False),
        }
        run_config = RunConfig(
            name=job.run.name,
            **ray_storage(runs_url),
            failure_config=FailureConfig(
                max_failures=max_failures, max_preemption_failures=-1, controller_failure_limit=0
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            callbacks=list(callbacks),
        )
        try:
            _fit(_trainer(worker_config, run_config, resources), resources, max_failures)
            _raise_failure(failure_url)
        except Exception as error:
            delete(beginnings_url)  # the same command tries again; a driver that was killed leaves the count
            if not is_retrained(job.run, store):
                raise
            LOGGER.warning("the run was lost behind its record, which counts (%s)", last_line(error))
    retrained = store.read(RETRAINED, job.fingerprint, RetrainedModel)
    if retrained is None:
        raise RuntimeError(f"run {job.fingerprint} ended without an exported model")
    delete(run_url)  # Checkpoints weigh six times the exported model.
    return retrained


def _known(job: RetrainingJob, store: Store, *, needs_files: bool) -> RetrainedModel | None:
    """The record of the run, unless the files that it names are gone and needed: then it is removed."""
    known = store.read(RETRAINED, job.fingerprint, RetrainedModel)
    if known is None or not needs_files or all(map(has_files, known.model.payloads)):
        return known
    LOGGER.warning("the retrained model is gone from %s: it is trained again", known.model.url)
    store.remove(RETRAINED, job.fingerprint)
    return None


def _trainer(worker_config: dict, run_config: RunConfig, resources: ResourcesConfig) -> TorchTrainer:
    """Ray's trainer on the workers that are asked for."""
    for name, value in INTERVALS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(resources.node_wait_seconds))
    return _Trainer(
        _train,
        train_loop_config=worker_config,
        scaling_config=ScalingConfig(
            num_workers=resources.workers if resources.elastic else resources.max_workers,
            elastic_resize_monitor_interval_s=resources.resize_seconds,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_resources(resources),
            label_selector=resources.worker_labels or None,
        ),
        torch_config=DeviceTorchConfig() if resources.gpus_per_worker else TorchConfig(backend="gloo"),
        run_config=run_config,
    )


class _Trainer(TorchTrainer):
    """Ctrl-C and the loss of the lease stay the driver's: Ray's own handler would outlive its run and swallow them."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _train(config: dict) -> None:
    """What each worker runs. The process that controls the run reads this too, and would take seconds to import what
    it does not need."""
    from shortened_llm.retraining.worker import run_worker

    run_worker(config)


def _fit(trainer: TorchTrainer, resources: ResourcesConfig, max_failures: int) -> None:
    """Train; wait once for the fewest workers, where Ray alone would begin to wait anew without end.

    Workers that are lost while they start are tried again as often as those that are lost later, and so is a range of
    workers of which more than the fewest were awaited: the next attempt takes what there is by then.
    """
    failures = 0
    while True:
        try:
            trainer.fit()
            return
        except ControllerError as error:
            failure = error.controller_failure
            failures += 1
            if isinstance(failure, WorkerGroupStartupTimeoutError):
                if failures > max_failures or failure.num_workers <= resources.min_workers:
                    needs = ", ".join(f"{amount:g} {kind}" for kind, amount in worker_resources(resources).items())
                    raise NodesMissingError(
                        f"no room for {failure.num_workers} worker(s) of {needs} came within "
                        f"resources.node_wait_seconds ({resources.node_wait_seconds:g} s)"
                    ) from None
            elif failures > max_failures or not isinstance(failure, WorkerGroupStartupFailedError):
                raise


class _DeviceBackend(_TorchBackend):
    """Chosen on the workers: the driver's machine need not have what theirs have."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        on_gpu = any(worker_group.execute(torch.cuda.is_available))  # where some lack it, NCCL says which
        super().on_start(worker_group, replace(backend_config, backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"))


@dataclass
class DeviceTorchConfig(TorchConfig):
    """NCCL beside gloo where the workers' GPUs are real; a cluster may count GPUs that it has not."""

    @property
    def backend_cls(self) -> type[_DeviceBackend]:
        return _DeviceBackend


def worker_resources(resources: ResourcesConfig) -> dict[str, float]:
    """What Ray reserves for one training worker."""
    demand = {"CPU": resources.cpus_per_worker}
    return demand | {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else demand


def _raise_failure(url: str) -> None:
    """Raise what the workers left at `url`, if anything."""
    try:
        cause = json.loads(read_bytes(url))
    except FileNotFoundError:
        return
    from shortened_llm.retraining.worker import LASTING

    errors = {error.__name__: error for error in LASTING}
    raise errors[cause["error"]](cause["message"])
