"""The training loop: steps, reports, checkpoints, and the hooks by which more is done."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from transformers import PreTrainedModel

from shortened_llm import metrics
from shortened_llm.data.batches import StepBatch
from shortened_llm.logs import LOGGER
from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.checkpoint import Checkpointer, PendingCheckpoint
from shortened_llm.retraining.distillation import Teacher
from shortened_llm.retraining.guard import Guard
from shortened_llm.retraining.inputs import Inputs, validation_loss
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.meter import Meter
from shortened_llm.retraining.progress import RunProgress, advance, progress_values
from shortened_llm.retraining.schedule import learning_rate
from shortened_llm.retraining.stable import keeps_stable
from shortened_llm.retraining.step import StepOutcome, train_step
from shortened_llm.retraining.zeros import HeldZeros

REPORTS = 40
"""Reports of a run, about; each makes the host wait for the device."""


class Host(Protocol):
    """Whoever runs the loop. Every worker calls the same methods at the same steps."""

    def report(self, values: Mapping[str, float], point: TrainingPoint, checkpoint: PendingCheckpoint | None) -> None:
        """Take metrics (`metrics.py`), and a checkpoint that is being written."""

    def preempted(self) -> bool:
        """Whether this run's machines are about to go, so that a checkpoint is due at once. Asked at each step."""


AfterStep = Callable[["TrainLoop", int], None]
"""Called on every worker with the number of steps done, once the weights are updated and before anything reads them.
It may change weights in place; a step whose update was skipped counts too."""
AtReport = Callable[["TrainLoop", TrainingPoint], None]
"""Called on every worker with the point of a report, before its checkpoint. It may call `TrainLoop.stop`, on all
workers or on none: losses and norms are equal on all of them, seconds are not."""


@dataclass(slots=True, kw_only=True)
class TrainLoop:
    """One run and all that it holds. What else is to be done with it is a hook in one of the two lists."""

    job: RetrainingJob
    model: PreTrainedModel
    """Sharded."""
    teacher: Teacher | None
    gathers_once: bool
    """Whether weights are gathered once per step: see `sharding.gathers_once`."""
    zeros: HeldZeros
    optimizer: Optimizer
    inputs: Inputs
    meter: Meter
    guard: Guard
    checkpointer: Checkpointer
    host: Host
    accelerators: float
    """GPUs of all workers, or workers on CPU."""
    progress: RunProgress
    """The progress at the last report."""
    after_step: list[AfterStep] = field(default_factory=list)
    at_report: list[AtReport] = field(default_factory=list)
    _stopped: bool = field(default=False, init=False)
    _preempted: bool = field(default=False, init=False)
    _stalled: float = field(default=0.0, init=False)
    """Seconds that the last report held up the loop."""
    _unread: list[tuple[StepBatch, StepOutcome]] = field(default_factory=list, init=False)
    """Steps since the last report; their numbers lie on the device."""

    def stop(self) -> None:
        """End the run with this report: its checkpoint is the run's last. For hooks at a report."""
        self._stopped = True

    def run(self) -> None:
        """Do the steps that are left. A collective."""
        num_steps = self.job.recipe.num_steps
        report_steps = max(1, min(10, num_steps // REPORTS))
        # An attempt that was lost after a stop, such as while it exported, has no step left.
        first = num_steps if self.progress.stopped else self.progress.step
        for batch in self.inputs.stream.steps(first, num_steps):
            self._step(batch)
            done = batch.step + 1
            save = self._checkpoint_is_due(done)
            if save or done % report_steps == 0:
                self._report(done, save=save)
            if self._stopped:
                break
        self.checkpointer.close()

    def _step(self, batch: StepBatch) -> None:
        recipe = self.job.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(batch.step, recipe)
        outcome = train_step(
            self.model, self.optimizer, batch.micro_batches, recipe, place=self.inputs.place,
            num_predictions=batch.num_predictions, world_size=dist.get_world_size(), teacher=self.teacher,
            gathers_once=self.gathers_once, zeros=self.zeros,
        )  # fmt: skip
        for hook in self.after_step:
            hook(self, batch.step + 1)
        self._unread.append((batch, outcome))
        self.meter.step(batch.num_tokens)

    def _checkpoint_is_due(self, done: int) -> bool:
        """After the last step too: should the export fail, no step is done again."""
        leaving = self.host.preempted() and not self._preempted
        self._preempted |= leaving
        job = self.job
        return done % job.checkpoint_steps == 0 or leaving or keeps_stable(job, done) or done == job.recipe.num_steps

    def _report(self, done: int, *, save: bool) -> None:
        point = self._point(done, validate=save)
        for hook in self.at_report:
            hook(self, point)
        if self._stopped and not save:  # a run ends alike wherever it ends
            save, point = True, replace(point, validation_loss=validation_loss(self.model, self.inputs.validation))
        self.progress = advance(self.progress, point, self.guard, accelerators=self.accelerators, stopped=self._stopped)
        values = progress_values(self.progress, point) | self.meter.measure(
            waited=self.inputs.stream.waited,
            left=0 if self._stopped else self.job.recipe.num_steps - done,
            tokens_per_step=self.progress.tokens / done,
        )
        # What the checkpoint and the report cost is part of the next interval.
        self.meter.restart()
        started = time.monotonic()
        pending = self.checkpointer.save(self.model, self.optimizer, self.progress) if save else None
        values[metrics.CHECKPOINT_STALL] = self._stalled + time.monotonic() - started
        started = time.monotonic()
        self.host.report(values, point, pending)  # waits where the storage is slower than the training
        self._stalled = time.monotonic() - started
        self._unread.clear()

    def _point(self, done: int, *, validate: bool) -> TrainingPoint:
        """What the steps since the last report came to."""
        loss, norm = self._read()
        held_out = validation_loss(self.model, self.inputs.validation) if validate else None
        tokens, seconds = self.meter.tokens, self.meter.seconds
        return TrainingPoint(
            step=done,
            tokens=self.progress.tokens + tokens,
            loss=loss,
            learning_rate=learning_rate(done - 1, self.job.recipe),
            tokens_per_second=tokens / seconds,
            seconds=self.progress.seconds + seconds,
            gradient_norm=norm,
            validation_loss=held_out,
        )

    def _read(self) -> tuple[float, float]:
        """Wait for the device; returns the mean loss over the steps that counted, and the last gradient norm."""
        sums = torch.stack([outcome.loss for _, outcome in self._unread])
        dist.all_reduce(sums)
        skipped = torch.stack([outcome.skipped for _, outcome in self._unread])
        norms = torch.stack([outcome.gradient_norm for _, outcome in self._unread])
        numbers = torch.stack([sums, skipped.to(sums), norms.to(sums)], dim=1).tolist()
        total = predictions = 0.0
        for (batch, _), (summed, left_out, _) in zip(self._unread, numbers, strict=True):
            mean = summed / max(1, batch.num_predictions)
            if left_out and dist.get_rank() == 0:
                LOGGER.warning(
                    "step %d skipped: loss %s, gradient not finite; its sequences (source, index): %s",
                    batch.step + 1, mean, self.inputs.stream.indices(batch.step),
                )  # fmt: skip
            self.guard.see(batch.step, mean, skipped=bool(left_out))
            if not left_out:
                total, predictions = total + summed, predictions + batch.num_predictions
        return total / predictions if predictions else float("nan"), numbers[-1][-1]
