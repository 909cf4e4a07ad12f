"""Taylor: first-order estimate of the loss that removing each weight costs."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from shortened_llm.criteria.criterion import Criterion, CriterionOptions, CriterionScores

Reduction = Literal["sum", "mean", "max"]


def _as_number(value: object) -> object:
    """Flags are text, and pydantic compares a literal as it is."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class TaylorOptions(CriterionOptions):
    """|weight x dL/dweight|^power, summed over the inputs of each output of a weight, reduced over these outputs, then
    over the block's weights; L is the mean next-token cross-entropy. Source: Shortened LLaMA, arXiv 2402.02834, section
    2.2 ("Taylor")."""

    power: Annotated[Literal[1, 2], BeforeValidator(_as_number)] = 1
    """Exponent of each weight's importance."""
    output_reduction: Reduction = "sum"
    """Over the output dimension of a weight."""
    block_reduction: Reduction = "sum"
    """Over the weights of a block."""


CRITERION = Criterion(
    options=TaylorOptions,
    measured="taylor",
    reads_text=True,
    reduce=lambda measured: CriterionScores(scores=tuple(measured.values.tolist())),
)
