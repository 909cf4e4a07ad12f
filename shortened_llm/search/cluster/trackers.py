"""Experiment trackers beside TensorBoard, through Ray's own integrations. Keys come from the environment alone."""

import importlib.util
import os
from collections.abc import Mapping

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.config import TrackingConfig
from shortened_llm.errors import BadInputError

WANDB_KEY, WANDB_MODE = "WANDB_API_KEY", "WANDB_MODE"


def check_tracking(tracking: TrackingConfig) -> None:
    """Check that the trackers' packages are installed here, and that there is a key.

    Raises:
        BadInputError: with what to install or to set.
    """
    for name, section in (("wandb", tracking.wandb), ("mlflow", tracking.mlflow)):
        if section is not None and importlib.util.find_spec(name) is None:
            raise BadInputError(f"tracking.{name}: the package {name} is not installed; pip install {name}")
    if tracking.wandb is not None and not _has_key(os.environ):
        raise BadInputError(f"tracking.wandb: set {WANDB_KEY} in the environment, or {WANDB_MODE}=offline")


def check_node(tracking: TrackingConfig) -> None:
    """Check that processes which Ray starts on this node have the key too: those talk to the tracker.

    Raises:
        BadInputError: they do not.
    """
    if tracking.wandb is None:
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    look = ray.remote(num_cpus=0)(lambda: _has_key(os.environ)).options(scheduling_strategy=here)
    if not ray.get(look.remote()):
        raise BadInputError(
            f"tracking.wandb: {WANDB_KEY} or {WANDB_MODE} is set for this process, but not for those that Ray starts "
            "on its node; set it in the environment of `ray start`"
        )


def tracker_callbacks(tracking: TrackingConfig, experiment: str) -> list[object]:
    """Ray Tune callbacks that log each report of a trial; they run in the driver, new ones for each Tuner."""
    callbacks: list[object] = []
    if tracking.wandb is not None:
        callbacks.append(_wandb_callback(tracking.wandb.project, tracking.wandb.entity, experiment))
    if tracking.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        name = tracking.mlflow.experiment or experiment
        callbacks.append(
            MLflowLoggerCallback(tracking.mlflow.tracking_uri, experiment_name=name, tags={"experiment": experiment})
        )
    return callbacks


def _wandb_callback(project: str, entity: str | None, experiment: str) -> object:
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

    class FlushingActor(_WandbLoggingActor):
        """Ray's own is killed as soon as it returns, when the last of a run may not be written yet."""

        def run(self) -> None:
            super().run()
            self._wandb.teardown()

    class KeylessCallback(WandbLoggerCallback):
        """Ray's own would put the key into the runtime environment of its actors, where the state API shows it."""

        _remote_logger_class: object

        def _start_logging_actor(self, *arguments: object, **options: object) -> None:
            if not self._remote_logger_class:
                here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
                make = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
                self._remote_logger_class = make(FlushingActor)
            super()._start_logging_actor(*arguments, **options)

    return KeylessCallback(project=project, group=experiment, entity=entity)


def _has_key(environment: Mapping[str, str]) -> bool:
    return bool(environment.get(WANDB_KEY)) or environment.get(WANDB_MODE) in ("offline", "disabled")
