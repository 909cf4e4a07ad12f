"""Training runs: what they are, and what they hand on."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from shortened_llm.records.model import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Adapters of a run; see `methods.lora.LoraOptions`."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """Loss of a distillation; see `methods.distill.DistillOptions`."""

    temperature: float
    hard_loss_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run: everything that changes the weights, but for the model and the data."""

    method: str
    """The row of `methods.METHODS` that says how it trains."""
    train_on: Literal["corpus", "instructions"]
    num_steps: int
    """Optimiser steps (count)."""
    global_batch_size: int
    """Sequences per optimiser step, over all workers."""
    sequence_length: int
    """Tokens; the longest where sequences differ."""
    seed: int
    learning_rate: float
    """At its peak."""
    weight_decay: float
    betas: tuple[float, float]
    max_gradient_norm: float
    schedule: Literal["wsd", "cosine", "linear"]
    warmup_steps: int
    decay_steps: int
    """Steps that decay, with wsd; the other schedules decay from the warm-up on."""
    final_learning_rate_ratio: float
    first_sequence: int = 0
    """Place in the order of the training data at which the run begins: behind what the runs before it have read."""
    isolate_documents: bool = False
    lora: LoraOptions | None = None
    distill: DistillOptions | None = None
    options: dict[str, bool | int | float | str | tuple[str, ...] | None] = field(default_factory=dict)
    """The method's own, where they choose the weights that are trained."""

    @property
    def settings(self) -> str:
        """What a search may vary of the method, beside the learning rate and the seed: `rank 8`; empty where nothing
        is."""
        weight = self.distill.hard_loss_weight if self.distill else 0
        return f"rank {self.lora.rank}" if self.lora else f"hard loss x {weight:g}" if weight else ""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step, padding included."""
        return self.global_batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, padding included."""
        return self.num_steps * self.tokens_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """One report of a training run."""

    step: int
    tokens: int
    """Since the start, without padding."""
    loss: float
    """What is minimised, per prediction, over the steps since the last report, in nats."""
    learning_rate: float
    tokens_per_second: float
    seconds: float
    """Training time since the start, over all attempts."""
    gradient_norm: float | None = None
    """Before clipping, of the last step."""
    validation_loss: float | None = None
    """Cross-entropy on the validation sequences, in nats per prediction, where it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainedModel:
    """What one training run hands on."""

    model: ModelRef
    adapter: ModelRef | None = None
    """The adapters alone, in peft's format, where the run trained some; they are merged in `model`."""
    tokens: int
    """Without padding."""
    seconds: float
    """Wall time of the training loop and its checkpoints, over all attempts that resumed one another."""
    accelerator_seconds: float
    """Seconds times the number of GPUs, or of workers on CPU."""
    history: tuple[TrainingPoint, ...]
    skipped_steps: tuple[int, ...] = ()
    """Steps that were left out because their loss or gradient was not finite."""
    loss_spikes: tuple[int, ...] = ()
    """Steps whose loss stood far above those before."""
    first_validation_loss: float | None = None
    """Cross-entropy on the validation sequences before the first step, in nats per prediction; the last point of the
    history has that after the last one."""

    @property
    def last_validation_loss(self) -> float | None:
        return self.history[-1].validation_loss if self.history else None


def taken_over(run: RetrainedModel, seen: Collection[TrainingPoint]) -> TrainingPoint | None:
    """The last of a run's reports that another run has too: from there it went on, since times are equal as well; a run
    that began anew has other times. None where it began itself.

    Args:
        seen: the reports of the others.
    """
    return next((point for point in reversed(run.history) if point in seen), None)


def accelerator_seconds(runs: Iterable[RetrainedModel]) -> float:
    """What runs cost together, each once; what one took over from another is counted once too."""
    total = 0.0
    seen: set[TrainingPoint] = set()
    for run in {run.model.fingerprint: run for run in runs}.values():
        first = taken_over(run, seen)
        own = run.seconds - (first.seconds if first else 0.0)
        total += own * run.accelerator_seconds / run.seconds if run.seconds else 0.0
        seen.update(run.history)
    return total
