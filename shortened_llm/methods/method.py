"""What a retraining method is, and the optimiser that every method has."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from shortened_llm.fields import LOG, Axis, Range, Section
from shortened_llm.records import DistillOptions, LoraOptions

TrainOn = Literal["corpus", "instructions"]
Rate = Annotated[float, Field(gt=0)]


class Rates(Range[Rate]):
    """Learning rates between two bounds."""


class OptimizerOptions(Section):
    """AdamW and its schedule."""

    learning_rate: Annotated[Axis[Rate, Rates], LOG] = (1e-4,)
    """Peak learning rate; a list or a range is an axis of the search."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's decoupled weight decay, on weights with two or more dimensions."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    """Learning rate after the warm-up. wsd: constant, then a linear decay; cosine and linear decay from there on."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps with a linearly rising learning rate."""
    warmup_steps: int | None = Field(None, ge=0)
    """Warm-up in optimiser steps (count); it wins over warmup_ratio. A wsd run with more tokens can continue an earlier
    one only where both warmed up alike."""
    decay_ratio: float = Field(0.2, gt=0, le=1)
    """With wsd: share of the steps with a decaying learning rate."""
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end / peak learning rate."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    @property
    def own(self) -> dict[str, Any]:
        """The options that the method has beside its optimiser's."""
        return {name: value for name, value in self if name not in OptimizerOptions.model_fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run of a chain."""

    method: str
    """The row that says how it trains; its section has the optimiser."""
    train_on: TrainOn = "corpus"
    share: float = 1.0
    """Share of the chain's tokens, for a run on the corpus. Runs on instructions have a budget of their own: epochs."""


Chain = tuple[Run, ...]
"""Runs, each from the model of the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """A model, by what a method may choose to train of it; each is a torch module."""

    model: Any
    blocks: Sequence[Any]
    """Those that are left, in model order."""
    final_norm: Any
    head: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table. Unless something else is said, a run of it trains all weights on the text."""

    options: type[Section] | None
    """What a user may set of it; its docstring gives formula and source. One that has runs of its own is an
    `OptimizerOptions`."""
    summary: str
    """In a few words, for help."""
    chains: Callable[[Mapping[str, Any]], Iterable[Chain]]
    """The chains of runs that it stands for, given the options of every method by name; all of them are tried."""
    trained: Callable[[ModelParts, Any], Iterable[Any]] | None = None
    """The modules whose weights are trained, by its options; all other weights are frozen."""
    adapters: Callable[[Any], LoraOptions] | None = None
    """Adapters that are trained instead of the weights, by its options."""
    distill: Callable[[Any], DistillOptions] | None = None
    """Loss against the dense model's predictions, by its options."""
    from_random: bool = False
    """Whether the weights are drawn at random, and only the shape is that of the pruned model."""
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Defaults that differ under a preset of the configuration."""
    learning_rates: tuple[float, float] = (1e-5, 1e-3)
    """Where a sampler looks for the learning rate unless the user says."""


SHORT_FULL: Mapping[str, object] = {"learning_rate": 3e-4, "warmup_ratio": 0.1}
"""For budgets below a million tokens, where full weights are trained."""


def corpus_steps(chain: Chain, steps: int) -> tuple[int, ...]:
    """Optimiser steps of each run, where the chain has `steps` on the corpus; 0 for a run on instructions."""
    shares = accumulate(run.share if run.train_on == "corpus" else 0.0 for run in chain)
    return tuple(end - start for start, end in pairwise([0, *(round(share * steps) for share in shares)]))


def alone(method: str) -> Callable[[Mapping[str, Any]], Iterable[Chain]]:
    """The chain of a method that is one run on the corpus."""
    return lambda options: ((Run(method=method),),)
