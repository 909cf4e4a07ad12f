"""Train a model. It runs in any initialised process group; Ray is one way to start it (worker.py)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from shortened_llm.methods import METHODS
from shortened_llm.models.shards import draw_weights
from shortened_llm.retraining.adapters import initial_adapter
from shortened_llm.retraining.checkpoint import Checkpointer, load_checkpoint
from shortened_llm.retraining.distillation import Teacher
from shortened_llm.retraining.flops import training_flops
from shortened_llm.retraining.guard import Guard
from shortened_llm.retraining.inputs import keeps_apart, open_inputs, validation_loss
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.loaded import check_loaded
from shortened_llm.retraining.loop import AfterStep, AtReport, Host, TrainLoop
from shortened_llm.retraining.meter import Meter
from shortened_llm.retraining.prepare import freeze, prepare_method
from shortened_llm.retraining.progress import RunProgress
from shortened_llm.retraining.sharding import gathers_once, make_mesh, open_sharded
from shortened_llm.retraining.step import make_optimizer
from shortened_llm.retraining.zeros import HeldZeros, holds_zeros


def train(
    job: RetrainingJob,
    *,
    device: torch.device,
    resume_from: Path | None,
    host: Host,
    shard_group: int | None = None,
    accelerators_per_worker: float = 1.0,
    on_loaded: Callable[[], None] = lambda: None,
    after_step: Sequence[AfterStep] = (),
    at_report: Sequence[AtReport] = (),
) -> tuple[PreTrainedModel, RunProgress]:
    """Train `job.model` by its recipe, from its start or from a checkpoint. A collective.

    Args:
        resume_from: directory of a checkpoint that was verified.
        shard_group: workers over which a copy of the model is sharded; all unless given.
        accelerators_per_worker: GPUs of each, for the cost that is reported; 1 on CPU.
        on_loaded: called when `resume_from` is no longer read.
        after_step, at_report: hooks, called in their order. What they do to a run must follow from `job`: checkpoints
            and results are told apart by its identity.

    Returns:
        The sharded model and how the run went.

    Raises:
        NonFiniteLossError: the gradient was not finite in too many steps in a row.
        CheckpointMismatchError: see `checkpoint.load_checkpoint`.
    """
    recipe, world_size = job.recipe, dist.get_world_size()
    mesh = make_mesh(device, world_size, shard_group)
    model, teacher = _open_student(job, mesh, device), _open_teacher(job, mesh, device)
    keep_apart = keeps_apart(model, recipe, job.dtype)
    check_loaded(model, keep_apart)
    if teacher is not None:
        check_loaded(teacher.model, None)
    zeros, optimizer = HeldZeros.of(model, job.model), make_optimizer(model, recipe)
    progress = RunProgress()
    if resume_from is not None:
        progress = load_checkpoint(resume_from, model, optimizer, job.run.identity)
    on_loaded()
    inputs = open_inputs(job, device, keep_apart)
    if progress.step == 0:
        progress = replace(progress, first_validation_loss=validation_loss(model, inputs.validation))
    flops = training_flops(model, recipe.sequence_length)
    flops += training_flops(teacher.model, recipe.sequence_length) if teacher else 0.0
    loop = TrainLoop(
        job=job,
        model=model,
        teacher=teacher,
        gathers_once=gathers_once(model, mesh, job.dtype),
        zeros=zeros,
        optimizer=optimizer,
        inputs=inputs,
        meter=Meter(device, job.dtype, flops_per_token=flops, world_size=world_size),
        guard=Guard(
            max_in_a_row=job.placement.max_skipped_steps, skipped=progress.skipped_steps, spikes=progress.loss_spikes
        ),
        checkpointer=Checkpointer(job.run.identity, device),
        host=host,
        accelerators=world_size * accelerators_per_worker,
        progress=progress,
        after_step=list(after_step),
        at_report=list(at_report),
    )
    loop.run()
    return model, loop.progress


def _open_student(job: RetrainingJob, mesh: DeviceMesh, device: torch.device) -> PreTrainedModel:
    """The model to train, sharded, with what its method freezes or adds."""
    recipe = job.recipe
    model = open_sharded(
        job.model, mesh, job.dtype, job.placement, device=device, sequence_length=recipe.sequence_length,
        prepare=partial(prepare_method, recipe=recipe, dtype=job.dtype, holds_zeros=holds_zeros(job.model)),
        initialise=partial(initial_adapter, seed=recipe.seed) if recipe.lora else None,
    )  # fmt: skip
    if METHODS[recipe.method].from_random:
        draw_weights(model, job.model, recipe.seed)
    return model


def _open_teacher(job: RetrainingJob, mesh: DeviceMesh, device: torch.device) -> Teacher | None:
    """The teacher of a distillation, sharded like the student, frozen in the compute dtype."""
    if job.teacher is None or job.recipe.distill is None:
        return None
    model = open_sharded(
        job.teacher, mesh, job.dtype, job.placement, device=device, sequence_length=job.recipe.sequence_length,
        prepare=partial(freeze, dtype=job.dtype),
    )  # fmt: skip
    return Teacher(model.eval(), job.recipe.distill)
