"""Taylor: first-order estimate of the loss that removing a head or a channel costs."""

from typing import Literal

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import TAYLOR, WidthCriterion


class WidthTaylorOptions(CriterionOptions):
    """The products weight x dL/dweight, over each tensor's part of a unit, then reduced over its tensors; L is the mean
    next-token cross-entropy. Source: LLM-Pruner, arXiv 2305.11627, section 3.2."""

    importance: Literal["vector", "element", "mixed"] = "element"
    """vector: |sum of the products|; element: sum of their absolute values; mixed: sum of |product - weight^2 / 2 x
    mean over the sequences of (dL/dweight)^2|, which takes a backward pass for each sequence."""
    reduction: Literal["sum", "mean", "max", "prod"] = "sum"
    """Over the tensors of a unit."""
    gqa_grouping: Literal["own", "public"] = "own"
    """Whose query heads a key-value head is scored with: its own, or, of G key-value heads, every G-th, which go with
    others: what the public code of the paper adds up."""


CRITERION = WidthCriterion(
    options=WidthTaylorOptions,
    measured=TAYLOR,
    reads_text=True,
    reduce=lambda measured: measured.split(measured.values[:, 0]),
)
