"""What each Ray Train worker runs."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device

from shortened_llm import metrics
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.records import RetrainedModel, TrainingPoint
from shortened_llm.retraining.export import KIND, export_sharded
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loop import train
from shortened_llm.storage.store import Store


def run_worker(config: dict) -> None:
    """Train and export `config["job"]`; the record that says so is written last, by rank 0."""
    quiet_libraries()
    job: RetrainingJob = config["job"]
    store: Store = config["store"]
    on_progress: Callable[[str], None] = config["on_progress"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = get_device()
    if device.type == "cpu":
        prepare_cpu(fair_threads(context.get_local_world_size()))
    if rank == 0:
        on_progress("loading the model")

    def report(point: TrainingPoint, gradient_norm: float, checkpoint_directory: Path | None) -> None:
        if rank == 0:
            on_progress(_progress_line(point, job))
        values = {
            metrics.TOKENS: point.tokens,
            metrics.STEP: point.step,
            metrics.LOSS: point.loss,
            metrics.LEARNING_RATE: point.learning_rate,
            metrics.GRADIENT_NORM: gradient_norm,
            metrics.TOKENS_PER_SECOND: point.tokens_per_second,
        }
        if checkpoint_directory is None:
            ray.train.report(values)
        else:
            ray.train.report(
                values,
                checkpoint=Checkpoint.from_directory(checkpoint_directory),
                checkpoint_dir_name=f"checkpoint_{point.step:08d}",
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                delete_local_checkpoint_after_upload=True,
            )

    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as directory:
        if directory is not None and rank == 0:
            on_progress("resuming from a checkpoint")
        resume_from = None if directory is None else Path(directory)
        model, progress = train(job, device=device, resume_from=resume_from, report=report)
    if rank == 0:
        on_progress("exporting")
    exported = export_sharded(model, job, store, rank=rank)
    if exported is not None:
        record = RetrainedModel(
            model=exported,
            tokens=progress.step * job.config.tokens_per_step,
            seconds=progress.seconds,
            history=progress.history,
        )
        store.write(KIND, job.fingerprint, record, identity=job.identity)


def _progress_line(point: TrainingPoint, job: RetrainingJob) -> str:
    remaining = job.config.num_steps * job.config.tokens_per_step - point.tokens
    return (
        f"step {point.step}/{job.config.num_steps}, {point.tokens:,} tokens, loss {point.loss:.3f}, "
        f"{point.tokens_per_second:,.0f} tokens/s, {remaining / point.tokens_per_second:.0f} s left"
    )
