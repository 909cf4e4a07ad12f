"""Distillation: all weights, towards the dense model's predictions."""

from typing import Annotated

from pydantic import Field

from shortened_llm.fields import Axis, Range, only
from shortened_llm.methods.method import SHORT_FULL, Method, OptimizerOptions, alone
from shortened_llm.records import DistillOptions as DistillLoss

Weight = Annotated[float, Field(ge=0)]


class Weights(Range[Weight]):
    """Weights between two bounds."""


class DistillOptions(OptimizerOptions):
    """All weights, towards the predictions of the dense model: T^2 x KL(dense || pruned) + hard_loss_weight x the
    cross-entropy on the text. Source: Hinton et al., arXiv 1503.02531."""

    temperature: float = Field(1.0, gt=0)
    """T: both models' logits are divided by it."""
    hard_loss_weight: Axis[Weight, Weights] = (0.0,)
    """Weight of the cross-entropy; a list or a range is an axis of the search."""


METHOD = Method(
    options=DistillOptions,
    summary="towards the dense model",
    chains=alone("distill"),
    distill=lambda options: DistillLoss(
        temperature=options.temperature, hard_loss_weight=only(options.hard_loss_weight)
    ),
    presets={"short": SHORT_FULL},
)
