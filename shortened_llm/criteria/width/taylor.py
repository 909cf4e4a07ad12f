"""Taylor: first-order estimate of the loss that removing a head or a channel costs."""

from typing import Literal

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import TAYLOR, WidthCriterion


class WidthTaylorOptions(CriterionOptions):
    """The products weight x dL/dweight, over each tensor's part of a unit, then reduced over its tensors; L is the mean
    next-token cross-entropy. A key-value head is scored with its own query heads. Source: LLM-Pruner, arXiv 2305.11627,
    section 3.2; the second-order term of its mixed estimate, negligible at these gradients, is left out."""

    importance: Literal["vector", "element"] = "element"
    """vector: |sum of the products|; element: sum of their absolute values."""
    reduction: Literal["sum", "mean", "max", "prod"] = "sum"
    """Over the tensors of a unit."""


CRITERION = WidthCriterion(
    options=WidthTaylorOptions,
    measured=TAYLOR,
    reads_text=True,
    reduce=lambda measured: measured.split(measured.values[:, 0]),
)
