"""Where a run stands, and what it says of that at a report."""

from dataclasses import dataclass, replace

from shortened_llm import metrics
from shortened_llm.records import TrainingPoint
from shortened_llm.retraining.guard import Guard


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Where a run stands."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Trained on, without padding."""
    seconds: float = 0.0
    """Training time so far, over all attempts."""
    accelerator_seconds: float = 0.0
    """Seconds times the workers of each attempt."""
    history: tuple[TrainingPoint, ...] = ()
    skipped_steps: tuple[int, ...] = ()
    """Steps (from 0) left out because their gradient was not finite."""
    loss_spikes: tuple[int, ...] = ()
    """Steps (from 0) whose loss stood far above those before."""
    best_validation_loss: float | None = None
    first_validation_loss: float | None = None
    """Before the first step."""
    stopped: bool = False
    """Whether a hook ended the run before its last step, so that no attempt goes on with it."""


def advance(
    progress: RunProgress, point: TrainingPoint, guard: Guard, *, accelerators: float, stopped: bool
) -> RunProgress:
    """The progress at the end of an interval, with its point at the end of the history.

    Args:
        accelerators: GPUs that the interval's seconds were spent on, or workers on CPU.
    """
    measured = [value for value in (progress.best_validation_loss, point.validation_loss) if value is not None]
    return replace(
        progress,
        step=point.step,
        tokens=point.tokens,
        seconds=point.seconds,
        accelerator_seconds=progress.accelerator_seconds + (point.seconds - progress.seconds) * accelerators,
        # A point without a loss has no place in a record: its steps were all skipped, and are listed.
        history=(*progress.history, point) if point.loss == point.loss else progress.history,
        skipped_steps=tuple(guard.skipped),
        loss_spikes=tuple(guard.spikes),
        best_validation_loss=min(measured, default=None),
        stopped=stopped,
    )


def progress_values(progress: RunProgress, point: TrainingPoint) -> dict[str, float]:
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
