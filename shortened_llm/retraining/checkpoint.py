"""Save and restore a run: sharded weights and optimiser by DCP, progress as JSON."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from shortened_llm.records import TrainingPoint, from_json, to_json

PROGRESS_NAME = "progress.json"


class CheckpointMismatchError(RuntimeError):
    """A checkpoint belongs to another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Where a run stands."""

    fingerprint: str
    """Of the job."""
    step: int
    """Optimiser steps done."""
    seconds: float
    """Training time so far, over all attempts."""
    history: tuple[TrainingPoint, ...]


def save_checkpoint(
    directory: Path, model: nn.Module, optimizer: Optimizer, progress: RunProgress, *, rank: int
) -> None:
    """Write this worker's shards, and on rank 0 the progress. A collective."""
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=directory)
    if rank == 0:
        (directory / PROGRESS_NAME).write_text(to_json(progress))


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Optimizer, fingerprint: str) -> RunProgress:
    """Restore model and optimiser in place, for any number of workers. A collective.

    Raises:
        CheckpointMismatchError: the checkpoint is not of the job with this fingerprint.
    """
    progress = from_json(RunProgress, (directory / PROGRESS_NAME).read_text())
    if progress.fingerprint != fingerprint:
        raise CheckpointMismatchError(f"{directory} is a checkpoint of run {progress.fingerprint}, not {fingerprint}")
    weights, moments = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=directory)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    return progress
