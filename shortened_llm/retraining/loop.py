"""The training loop. It runs in any initialised process group; Ray is one way to start it (worker.py)."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from shortened_llm.data.order import sequence_at, step_positions
from shortened_llm.data.packing import TokenSequences
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.load import load_model
from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.checkpoint import RunProgress, load_checkpoint, save_checkpoint
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.schedule import learning_rate_factor
from shortened_llm.retraining.sharding import shard_model
from shortened_llm.retraining.step import make_optimizer, train_step

Report = Callable[[TrainingPoint, float, Path | None], None]
"""Called on every worker with (point, gradient norm, directory of a local checkpoint or None)."""


def train(
    job: RetrainingJob, *, device: torch.device, resume_from: Path | None, report: Report
) -> tuple[PreTrainedModel, RunProgress]:
    """Train `job.model` on its whole budget, from its start or from a checkpoint. A collective.

    Returns:
        The sharded model and how the run went.

    Raises:
        NonFiniteLossError: the loss of a step is NaN or infinite.
        CheckpointMismatchError: see `checkpoint.load_checkpoint`.
    """
    config, rank, world_size = job.config, dist.get_rank(), dist.get_world_size()
    model = load_model(job.model, "float32", device=device).train()
    shard_model(
        model,
        init_device_mesh(device.type, (world_size,)),
        job.dtype,
        activation_checkpointing=config.activation_checkpointing,
    )
    optimizer = make_optimizer(model, config.cpt, job.learning_rate)
    progress = RunProgress(fingerprint=job.fingerprint, step=0, seconds=0.0, history=())
    if resume_from is not None:
        progress = load_checkpoint(resume_from, model, optimizer, job.fingerprint)
    sequences = TokenSequences(job.tokens)
    num_predictions = config.global_batch_size * (config.sequence_length - 1)
    report_steps = max(1, min(10, config.num_steps // 5))
    losses: list[torch.Tensor] = []
    started = reported = time.monotonic()
    for step in range(progress.step, config.num_steps):
        learning_rate = job.learning_rate * learning_rate_factor(step, config.num_steps, config.cpt)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        micro_batches = _micro_batches(job, sequences, step, rank=rank, world_size=world_size, device=device)
        loss, norm = train_step(
            model,
            optimizer,
            micro_batches,
            num_predictions=num_predictions,
            world_size=world_size,
            max_gradient_norm=config.cpt.max_gradient_norm,
        )
        losses.append(loss)
        done = step + 1
        save = done % config.checkpoint_steps == 0 and done < config.num_steps
        if not save and done % report_steps and done < config.num_steps:
            continue
        mean_loss = _mean_loss(losses, num_predictions)
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(f"loss is {mean_loss} in the steps up to {done} of run {job.fingerprint}")
        now = time.monotonic()
        point = TrainingPoint(
            step=done,
            tokens=done * config.tokens_per_step,
            loss=mean_loss,
            learning_rate=learning_rate,
            tokens_per_second=len(losses) * config.tokens_per_step / (now - reported),
        )
        progress = RunProgress(
            fingerprint=job.fingerprint,
            step=done,
            seconds=progress.seconds + now - started,
            history=(*progress.history, point),
        )
        started, reported, losses = now, now, []
        directory = None
        if save:
            directory = Path(tempfile.mkdtemp(prefix="shortened_llm_checkpoint_"))
            save_checkpoint(directory, model, optimizer, progress, rank=rank)
        report(point, norm.item(), directory)
        reported = time.monotonic()
    return model, progress


def _micro_batches(
    job: RetrainingJob,
    sequences: TokenSequences,
    step: int,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
) -> Sequence[torch.Tensor]:
    """This worker's token ids of one step, cut into forward passes, each [at most micro_batch_size, length]."""
    config = job.config
    positions = step_positions(step, global_batch_size=config.global_batch_size, rank=rank, world_size=world_size)
    rows = [
        sequences[sequence_at(position, seed=config.seed, num_sequences=job.tokens.num_sequences)]
        for position in positions
    ]
    return torch.from_numpy(np.stack(rows).astype(np.int64)).to(device).split(config.micro_batch_size)


def _mean_loss(losses: list[torch.Tensor], num_predictions: int) -> float:
    """Mean nats per prediction over all workers and the given steps."""
    total = torch.stack(losses).sum()
    dist.all_reduce(total)
    return total.item() / (num_predictions * len(losses))
