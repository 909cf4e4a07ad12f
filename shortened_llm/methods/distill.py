"""Distillation: all weights, towards the dense model's predictions."""

from pydantic import Field

from shortened_llm.methods.method import SHORT_FULL, Method, OptimizerOptions, alone
from shortened_llm.records import DistillOptions as DistillLoss


class DistillOptions(OptimizerOptions):
    """All weights, towards the predictions of the dense model: T^2 x KL(dense || pruned) + hard_loss_weight x the
    cross-entropy on the text. Source: Hinton et al., arXiv 1503.02531."""

    temperature: float = Field(1.0, gt=0)
    """T: both models' logits are divided by it."""
    hard_loss_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy."""


METHOD = Method(
    options=DistillOptions,
    summary="towards the dense model",
    chains=alone("distill"),
    distill=lambda options: DistillLoss(**options.own),
    presets={"short": SHORT_FULL},
)
