"""The package's loop without Ray, with a clock in the place of the cluster."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from shortened_llm import metrics
from shortened_llm.models.load import load_model
from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.checkpoint import PendingCheckpoint
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.train import train
from tests.benchmarks.retraining.processes import Place
from tests.benchmarks.retraining.quality import perplexities


class Clock:
    """A host that notes when each report came, and keeps the checkpoints."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}
        self.losses: dict[int, float] = {}
        self.stalls: dict[int, float] = {}
        self.checkpoints: dict[int, PendingCheckpoint] = {}

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        self.ends[point.step] = time.perf_counter()
        self.losses[point.step] = point.loss
        if checkpoint is not None:
            self.checkpoints[point.step] = checkpoint
            self.stalls[point.step] = values[metrics.CHECKPOINT_STALL]

    def preempted(self) -> bool:
        return False


def with_ours(
    place: Place,
    job: RetrainingJob,
    texts: dict[str, torch.Tensor] | None = None,
    keep_in: Path | None = None,
    resume_from: Path | None = None,
) -> dict:
    """When each step ended (seconds), its loss, what each checkpoint held up (seconds), perplexities after training.

    Args:
        keep_in: checkpoints are put together here, each in a directory named by its step.
    """
    clock = Clock()
    with place.process_group():
        model, _ = train(job, device=torch.device("cpu"), resume_from=resume_from, host=clock)
        finished = time.perf_counter()
        for step, checkpoint in clock.checkpoints.items():
            directory = checkpoint.wait()
            if keep_in is not None:
                shutil.copytree(directory, keep_in / str(step), dirs_exist_ok=True)
            shutil.rmtree(directory)
        perplexity = perplexities(_whole(model, job), texts) if texts else {}
    return {
        "ends": clock.ends,
        "finished": finished,
        "losses": clock.losses,
        "stalls": clock.stalls,
        "perplexity": perplexity,
    }


@torch.no_grad()
def _whole(model: nn.Module, job: RetrainingJob) -> nn.Module:
    """The trained model, without shards."""
    plain = load_model(job.model, "float32")
    for parameter, trained in zip(plain.parameters(), model.parameters(), strict=True):
        parameter.copy_(trained.full_tensor())
    return plain
