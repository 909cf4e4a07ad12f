"""The training loop. It runs in any initialised process group; Ray is one way to start it (worker.py)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from shortened_llm import metrics
from shortened_llm.data.batches import MicroBatch, StepBatch, TrainingStream, validation_batches
from shortened_llm.logs import LOGGER
from shortened_llm.models.build import DTYPES
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.head import Documents
from shortened_llm.models.isolation import choose_isolation, document_inputs
from shortened_llm.records import Recipe, TrainingPoint
from shortened_llm.retraining.adapters import initial_adapter
from shortened_llm.retraining.checkpoint import Checkpointer, PendingCheckpoint, RunProgress, load_checkpoint
from shortened_llm.retraining.distillation import Teacher
from shortened_llm.retraining.flops import training_flops
from shortened_llm.retraining.guard import Guard
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loaded import check_loaded, evaluating
from shortened_llm.retraining.meter import Meter
from shortened_llm.retraining.methods import freeze, prepare_method
from shortened_llm.retraining.schedule import learning_rate
from shortened_llm.retraining.sharding import make_mesh, open_sharded
from shortened_llm.retraining.stable import keeps_stable
from shortened_llm.retraining.step import StepOutcome, make_optimizer, train_step

REPORTS = 40
"""Reports of a run, about; each makes the host wait for the device."""


class Host(Protocol):
    """Whoever runs the loop. Every worker calls the same methods at the same steps."""

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        """Take metrics (`metrics.py`), and a checkpoint that is being written."""

    def preempted(self) -> bool:
        """Whether this run's machines are about to go, so that a checkpoint is due at once. Asked at each step."""


def train(
    job: RetrainingJob,
    *,
    device: torch.device,
    resume_from: Path | None,
    host: Host,
    shard_group: int | None = None,
    accelerators_per_worker: float = 1.0,
    on_loaded: Callable[[], None] = lambda: None,
) -> tuple[PreTrainedModel, RunProgress]:
    """Train `job.model` by its recipe, from its start or from a checkpoint. A collective.

    Args:
        resume_from: directory of a checkpoint that was verified.
        shard_group: workers over which a copy of the model is sharded; all unless given.
        accelerators_per_worker: GPUs of each, for the cost that is reported; 1 on CPU.
        on_loaded: called when `resume_from` is no longer read.

    Returns:
        The sharded model and how the run went.

    Raises:
        NonFiniteLossError: the gradient was not finite in too many steps in a row.
        CheckpointMismatchError: see `checkpoint.load_checkpoint`.
    """
    recipe, rank, world_size = job.recipe, dist.get_rank(), dist.get_world_size()
    mesh = make_mesh(device, world_size, shard_group)
    model = open_sharded(
        job.model, mesh, job.dtype, job.placement, device=device, sequence_length=recipe.sequence_length,
        prepare=partial(prepare_method, recipe=recipe, dtype=job.dtype),
        initialise=partial(initial_adapter, seed=recipe.seed) if recipe.lora else None,
    )  # fmt: skip
    progress = RunProgress()
    teacher = _open_teacher(job, mesh, device)
    keep_apart = _keep_apart(model, recipe, job.dtype)
    check_loaded(model, keep_apart)
    if teacher is not None:
        check_loaded(teacher.model, None)
    place = partial(_place, device=device, keep_apart=keep_apart)
    optimizer = make_optimizer(model, recipe)
    if resume_from is not None:
        progress = load_checkpoint(resume_from, model, optimizer, job.identity)
    on_loaded()
    end_of_text = load_tokenizer(model_directory(job.model)).eos_token_id if recipe.isolate_documents else None
    stream = TrainingStream(
        job.tokens, recipe, micro_batch_size=job.placement.micro_batch_size, rank=rank, world_size=world_size,
        end_of_text=end_of_text,
    )  # fmt: skip
    held_out = [place(part) for part in _held_out(job, rank, world_size, end_of_text)]
    if held_out and progress.step == 0:
        progress = replace(progress, first_validation_loss=_validate(model, held_out))
    flops = training_flops(model, recipe.sequence_length)
    flops += training_flops(teacher.model, recipe.sequence_length) if teacher else 0.0
    meter = Meter(device, job.dtype, flops_per_token=flops, world_size=world_size)
    guard = Guard(
        max_in_a_row=job.placement.max_skipped_steps, skipped=progress.skipped_steps, spikes=progress.loss_spikes
    )
    checkpointer = Checkpointer(job.identity, device)
    report_steps = max(1, min(10, recipe.num_steps // REPORTS))
    unread: list[tuple[StepBatch, StepOutcome]] = []
    preempted, stalled = False, 0.0
    for batch in stream.steps(progress.step, recipe.num_steps):
        rate = learning_rate(batch.step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        outcome = train_step(
            model, optimizer, [place(micro_batch) for micro_batch in batch.micro_batches], recipe,
            num_predictions=batch.num_predictions, world_size=world_size, teacher=teacher,
        )  # fmt: skip
        unread.append((batch, outcome))
        meter.step(batch.num_tokens)
        done = batch.step + 1
        last = done == recipe.num_steps
        leaving = host.preempted() and not preempted
        preempted |= leaving
        # After the last step too: should the export fail, no step is done again.
        save = done % job.checkpoint_steps == 0 or leaving or keeps_stable(job, done) or last
        if not save and done % report_steps:
            continue
        loss, norm = _read(unread, guard, stream)
        validation_loss = _validate(model, held_out) if held_out and save else None
        progress, point = _advance(
            progress, done, guard, meter, loss=loss, norm=norm, rate=rate, validation_loss=validation_loss,
            accelerators=world_size * accelerators_per_worker,
        )  # fmt: skip
        values = _values(progress, point) | meter.measure(
            waited=stream.waited, left=recipe.num_steps - done, tokens_per_step=progress.tokens / done
        )
        # What the checkpoint and the report cost is part of the next interval.
        meter.restart()
        started = time.monotonic()
        pending = checkpointer.save(model, optimizer, progress) if save else None
        values[metrics.CHECKPOINT_STALL] = stalled + time.monotonic() - started
        started = time.monotonic()
        host.report(values, point, pending)  # waits where the storage is slower than the training
        stalled = time.monotonic() - started
        unread.clear()
    checkpointer.close()
    return model, progress


def _open_teacher(job: RetrainingJob, mesh: DeviceMesh, device: torch.device) -> Teacher | None:
    """The teacher of a distillation, sharded like the student, frozen in the compute dtype."""
    if job.teacher is None or job.recipe.distill is None:
        return None
    model = open_sharded(
        job.teacher, mesh, job.dtype, job.placement, device=device, sequence_length=job.recipe.sequence_length,
        prepare=partial(freeze, dtype=job.dtype),
    )  # fmt: skip
    return Teacher(model.eval(), job.recipe.distill)


def _held_out(job: RetrainingJob, rank: int, world_size: int, end_of_text: int | None) -> list[MicroBatch]:
    """This worker's part of the validation sequences."""
    if job.validation is None or job.placement.validation_sequences == 0:
        return []
    placement = job.placement
    return validation_batches(
        job.validation,
        placement.validation_sequences,
        placement.micro_batch_size,
        rank,
        world_size,
        end_of_text=end_of_text,
    )


KeepApart = Callable[[torch.Tensor], Documents]
"""From position ids, [batch, seq], to what keeps the documents of a sequence apart."""


def _keep_apart(model: PreTrainedModel, recipe: Recipe, dtype: str) -> KeepApart | None:
    """None where a recipe lets documents attend to one another; raises as `isolation.choose_isolation`."""
    if not recipe.isolate_documents:
        return None
    config, isolation = model.config, choose_isolation(model.config)
    return lambda position_ids: document_inputs(position_ids, isolation, config, DTYPES[dtype])


def _place(batch: MicroBatch, device: torch.device, keep_apart: KeepApart | None) -> MicroBatch:
    """The batch on the device, with what keeps its documents apart."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    placed = replace(batch, input_ids=move(batch.input_ids), labels=move(batch.labels))
    if keep_apart is None or batch.position_ids is None:
        return placed
    return replace(placed, documents=keep_apart(move(batch.position_ids)))


def _read(steps: Sequence[tuple[StepBatch, StepOutcome]], guard: Guard, stream: TrainingStream) -> tuple[float, float]:
    """Wait for the device; returns the mean loss over the steps that counted, and the last gradient norm."""
    sums = torch.stack([outcome.loss for _, outcome in steps])
    dist.all_reduce(sums)
    skipped = torch.stack([outcome.skipped for _, outcome in steps])
    norms = torch.stack([outcome.gradient_norm for _, outcome in steps])
    numbers = torch.stack([sums, skipped.to(sums), norms.to(sums)], dim=1).tolist()
    total = predictions = 0.0
    for (batch, _), (summed, left_out, _) in zip(steps, numbers, strict=True):
        mean = summed / max(1, batch.num_predictions)
        if left_out and dist.get_rank() == 0:
            LOGGER.warning(
                "step %d skipped: loss %s, gradient not finite; its sequences (source, index): %s",
                batch.step + 1, mean, stream.indices(batch.step),
            )  # fmt: skip
        guard.see(batch.step, mean, skipped=bool(left_out))
        if not left_out:
            total, predictions = total + summed, predictions + batch.num_predictions
    return total / predictions if predictions else float("nan"), numbers[-1][-1]


def _advance(
    progress: RunProgress,
    done: int,
    guard: Guard,
    meter: Meter,
    *,
    loss: float,
    norm: float,
    rate: float,
    validation_loss: float | None,
    accelerators: float,
) -> tuple[RunProgress, TrainingPoint]:
    """The progress after the interval's steps, its point at the end of the history."""
    tokens, seconds = meter.tokens, meter.seconds
    point = TrainingPoint(
        step=done,
        tokens=progress.tokens + tokens,
        loss=loss,
        learning_rate=rate,
        tokens_per_second=tokens / seconds,
        seconds=progress.seconds + seconds,
        gradient_norm=norm,
        validation_loss=validation_loss,
    )
    measured = [value for value in (progress.best_validation_loss, validation_loss) if value is not None]
    advanced = replace(
        progress,
        step=done,
        tokens=point.tokens,
        seconds=point.seconds,
        accelerator_seconds=progress.accelerator_seconds + seconds * accelerators,
        # A point without a loss has no place in a record: its steps were all skipped, and are listed.
        history=(*progress.history, point) if loss == loss else progress.history,
        skipped_steps=tuple(guard.skipped),
        loss_spikes=tuple(guard.spikes),
        best_validation_loss=min(measured, default=None),
    )
    return advanced, point


def _values(progress: RunProgress, point: TrainingPoint) -> dict[str, float]:
    """Metrics that the progress and its last point know."""
    values = {
        metrics.TOKENS: progress.tokens,
        metrics.STEP: progress.step,
        metrics.LOSS: point.loss,
        metrics.LEARNING_RATE: point.learning_rate,
        metrics.GRADIENT_NORM: point.gradient_norm or 0.0,
        metrics.ACCELERATOR_HOURS: progress.accelerator_seconds / 3600,
        metrics.SKIPPED_STEPS: len(progress.skipped_steps),
        metrics.LOSS_SPIKES: len(progress.loss_spikes),
    }
    if progress.best_validation_loss is not None:
        values[metrics.BEST_VALIDATION_LOSS] = progress.best_validation_loss
    return values if point.validation_loss is None else values | {metrics.VALIDATION_LOSS: point.validation_loss}


@torch.no_grad()
def _validate(model: PreTrainedModel, batches: Sequence[MicroBatch]) -> float:
    """Mean cross-entropy over the validation sequences, nats per prediction. A collective."""
    sums = torch.zeros(2, dtype=torch.float64, device=batches[0].input_ids.device)
    with evaluating(model):
        for batch in batches:
            sums[0] += model.sequence_nll(batch.input_ids, batch.labels, batch.documents).double().sum()
            sums[1] += (batch.labels >= 0).sum()
        dist.all_reduce(sums)
    return float(sums[0] / sums[1])
