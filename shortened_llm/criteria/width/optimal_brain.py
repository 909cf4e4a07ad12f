"""Optimal brain: what the outputs of layers lose without a weight once the others make up for it."""

from pydantic import Field

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import OPTIMAL_BRAIN, WidthCriterion


class OptimalBrainOptions(CriterionOptions):
    """W² / [(2 X Xᵀ)⁻¹]_jj, summed over all weights of a head or channel: its rows of the input projections and its
    columns of the output projection; X are the inputs of a layer. Forward passes alone. Source: the initial subnet of
    Search for Efficient LLMs, arXiv 2409.17372, after the optimal brain surgeon, Hassibi and Stork, 1993."""

    damping: float = Field(0.01, gt=0)
    """Share of the mean of its diagonal that is added to the diagonal of 2 X Xᵀ."""


CRITERION = WidthCriterion(
    options=OptimalBrainOptions,
    measured=OPTIMAL_BRAIN,
    reads_text=True,
    reduce=lambda measured: measured.split(measured.values[:, 0]),
)
