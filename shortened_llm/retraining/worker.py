"""What each Ray Train worker runs."""

import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device

from shortened_llm import metrics
from shortened_llm.errors import BadInputError, NonFiniteLossError
from shortened_llm.logs import LOGGER, about, setup_process
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.models.directory import model_directory
from shortened_llm.models.export import ExportError
from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.adapters import AdapterError
from shortened_llm.retraining.checkpoint import (
    CheckpointMismatchError,
    PendingCheckpoint,
    check_complete,
    first_fault,
    gathered,
    newest_usable,
)
from shortened_llm.retraining.export import export_sharded, write_run
from shortened_llm.retraining.interruption import Interruption, NotRestoredError
from shortened_llm.retraining.job import RetrainingJob, is_retrained
from shortened_llm.retraining.manifest import checkpoint_name, step_of
from shortened_llm.retraining.meter import progress_line
from shortened_llm.retraining.sharding import fault_of_dtype
from shortened_llm.retraining.stable import keeps_stable, stable_url, stable_urls
from shortened_llm.retraining.standstill import StandstillError, fault_of_standstill
from shortened_llm.retraining.train import train
from shortened_llm.storage.clients import ray_storage
from shortened_llm.storage.payload import local_directory, upload_directory
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import write_bytes
from shortened_llm.versions import Installed, check_equal

LASTING = (
    NonFiniteLossError,
    BadInputError,
    CheckpointMismatchError,
    ExportError,
    AdapterError,
    NotRestoredError,
    StandstillError,
)
"""What would come again, and so is not tried again."""


AsDirectory = Callable[[], AbstractContextManager[str]]


def run_worker(config: dict) -> None:
    """Train and export `config["job"]`; the record that says so is written last, by rank 0.

    What would only fail again is not raised, since Ray would start the workers once more: its cause is left at
    `config["failure_url"]`. It befalls all workers at the same step.
    """
    setup_process()
    config["store"].enter()
    speaks = ray.train.get_context().get_world_rank() == 0
    try:
        with about(config["subject"] if speaks else None):
            _train_and_export(config)
    except LASTING as error:
        if speaks:
            cause = {"error": type(error).__name__, "message": str(error)}
            write_bytes(config["failure_url"], json.dumps(cause).encode())


def _train_and_export(config: dict) -> None:
    job: RetrainingJob = config["job"]
    store: Store = config["store"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = _usable_device()
    check_equal([config["installed"], Installed.here(uses_gpu=device.type == "cuda")])  # this node may have come later
    if device.type == "cpu":
        prepare_cpu(config["threads"])
    if fault := first_fault(fault_of_dtype(job.dtype, device)):
        raise BadInputError(fault)  # on all workers, though only some may have such GPUs
    if gathered(rank == 0 and is_retrained(job.run, store))[0]:
        return  # the attempt before was lost behind its record
    candidates = _checkpoints(job, store, rank)
    fault = _fault_of_standstill(config, [step_of(name) for name, _ in candidates]) if rank == 0 else None
    if fault := first_fault(fault):
        raise StandstillError(fault)
    LOGGER.info("loading the model in %d worker(s)", context.get_world_size())
    if fault := first_fault(_fetch_inputs(job)):
        raise BadInputError(fault)
    host = RayHost(job, store, config["tokens_before"])
    part, parts = context.get_local_rank(), context.get_local_world_size()
    with contextlib.ExitStack() as local_copy:
        resume_from = local_copy.enter_context(newest_usable(candidates, part=part, parts=parts))
        if resume_from is not None:
            step = check_complete(str(resume_from))[0].progress.step
            LOGGER.warning("resuming from a checkpoint at step %d", step)
        interruption: Interruption | None = config["interruption"]
        if interruption:
            interruption.check_restored(resumes=resume_from is not None)
        model, progress = train(
            job, device=device, resume_from=resume_from, host=host, shard_group=config["shard_group"],
            accelerators_per_worker=config["accelerators"], on_loaded=local_copy.close,
            at_report=[interruption] if interruption and rank == 0 else [],
        )  # fmt: skip
    LOGGER.info("exporting in %s", job.export_dtype)
    exported = export_sharded(model, job, store, rank=rank)
    if exported is not None:
        write_run(job, exported, progress, store)


def _checkpoints(job: RetrainingJob, store: Store, rank: int) -> list[tuple[str, AsDirectory]]:
    """What the run may go on from, newest first: (name, what makes it a directory of this node). A collective."""
    reported = [one.checkpoint for one in reversed(ray.train.get_all_reported_checkpoints())]
    # Made once: the workers of a node share the download of a checkpoint that is the same object.
    kept = gathered(kept_checkpoints(job, store) if rank == 0 else [])[0]
    return [(Path(one.path).name, one.as_directory) for one in newest_first(reported, kept)]


def newest_first(reported: Sequence[Checkpoint], kept: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints by their steps; at the same step, one that the run itself reported comes before one that was
    kept."""
    return sorted([*reported, *kept], key=lambda one: step_of(Path(one.path).name), reverse=True)


def _fault_of_standstill(config: Mapping[str, Any], steps: Sequence[int]) -> str | None:
    return fault_of_standstill(
        config["beginnings_url"],
        step=max(steps, default=0),
        num_steps=config["job"].recipe.num_steps,
        workers=ray.train.get_context().get_world_size(),
        most_lost=config["most_lost"],
    )


def _fetch_inputs(job: RetrainingJob) -> str | None:
    """Bring models and tokens to this node before any collective whose time is limited; returns why that cannot be."""
    try:
        for ref in (job.model, job.teacher):
            if ref is not None:
                model_directory(ref)
    except BadInputError as error:
        return str(error)
    for mixture in (job.tokens, job.validation):
        for part in mixture.parts if mixture else ():
            local_directory(part.url, part.files)
    return None


def kept_checkpoints(job: RetrainingJob, store: Store) -> list[Checkpoint]:
    """See `stable.stable_urls`."""
    places = [ray_storage(url) for url in stable_urls(job, store)]
    return [Checkpoint(place["storage_path"], place.get("storage_filesystem")) for place in places]


def _usable_device() -> torch.device:
    """This worker's GPU; the CPU where torch knows no GPUs, on a cluster that only counts them.

    Raises:
        RuntimeError: torch could use a GPU, but finds none.
    """
    device = get_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        if torch.backends.cuda.is_built():
            raise RuntimeError(f"node {socket.gethostname()}: a GPU is reserved, but CUDA finds none; check its driver")
        LOGGER.warning("GPUs are reserved, but torch is built without CUDA: training on CPU")
        return torch.device("cpu")
    return device


class RayHost:
    """What the training loop asks of its surroundings, answered by Ray Train. Every worker has one."""

    def __init__(self, job: RetrainingJob, store: Store, tokens_before: int) -> None:
        self._job, self._store, self._tokens_before = job, store, tokens_before
        self._storage = ray.train.get_context().get_storage()
        self._uploaded = threading.Event()
        self._uploaded.set()
        self._preempted = False

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        """Hand metrics and perhaps a checkpoint to Ray. A collective.

        Always in Ray's upload thread: reports keep their order, so that metrics reported at once would wait for the
        upload of the checkpoint before them.
        """
        LOGGER.info("%s", progress_line(values, self._job.recipe.num_steps))
        # A trial's earlier runs count: tokens are the time axis of schedulers and plots.
        tokens = self._tokens_before + values[metrics.TOKENS]
        reported = {**values, metrics.TOKENS: tokens, metrics.TIME_AXIS: int(tokens)}
        if checkpoint is None:
            ray.train.report(reported, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        self._uploaded.wait()  # At most one local copy waits for its upload, however slow the storage is.
        self._uploaded.clear()

        def upload(local: Checkpoint, name: str) -> Checkpoint:
            try:
                directory = checkpoint.wait()
                if keeps_stable(self._job, point.step):
                    upload_directory(directory, stable_url(self._job, self._store, name))
                return self._storage.persist_current_checkpoint(local, name)
            finally:
                self._uploaded.set()

        ray.train.report(
            reported,
            checkpoint=Checkpoint.from_directory(checkpoint.directory),
            # Of rank 0 on all workers. Never used before: a damaged checkpoint of this step may still be listed, and
            # Ray would delete both when it deletes one.
            checkpoint_dir_name=checkpoint_name(int(values[metrics.STEP]), secrets.token_hex(4)),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )

    def preempted(self) -> bool:
        """Whether a node of this run was announced to go away. A collective, until it was."""
        if not self._preempted and (info := ray.train.get_preemption_info()) is not None:
            self._preempted = True
            announced = len(info.preempted_node_ids)
            LOGGER.warning("%d node(s) will be taken away; saving a checkpoint at once", announced)
        return self._preempted
