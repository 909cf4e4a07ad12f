"""A host that keeps what the loop reports."""

from collections.abc import Mapping
from dataclasses import replace

from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.checkpoint import PendingCheckpoint
from shortened_llm.retraining.job import RetrainingJob


class Recorder:
    """A host that keeps what it is told."""

    def __init__(self, *, preempted_at: int | None = None) -> None:
        self.points: list[TrainingPoint] = []
        self.values: list[Mapping[str, float]] = []
        self.checkpoints: list[PendingCheckpoint] = []
        self._preempted_at = preempted_at
        self._asked = 0

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        self.points.append(point)
        self.values.append(values)
        if checkpoint is not None:
            checkpoint.wait()
            self.checkpoints.append(checkpoint)

    def preempted(self) -> bool:
        self._asked += 1
        return self._preempted_at is not None and self._asked >= self._preempted_at


def with_rate(job: RetrainingJob, rate: float) -> RetrainingJob:
    """The same job at another peak learning rate."""
    return replace(job, recipe=replace(job.recipe, learning_rate=rate))
