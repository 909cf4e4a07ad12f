"""SparseGPT: the weights that the others can best make up for go, and these do."""

from pydantic import Field

from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightOptions


class SparseGptOptions(WeightOptions):
    """With U the upper Cholesky factor of the inverse of 2 X Xᵀ, weights with the smallest W² / U_jj² go, pooled over
    the rows and a block of columns, or in each group of a pattern N:M; the columns behind take up their error. Source:
    SparseGPT, arXiv 2301.00774, section 3."""

    damping: float = Field(0.01, gt=0)
    """Share of the mean of its diagonal that is added to the diagonal of 2 X Xᵀ."""
    block_size: int = Field(128, ge=1)
    """Columns (count) of which the weights are chosen together."""


CRITERION = WeightCriterion(options=SparseGptOptions, reads_text=True, joint=True, changes_weights=True)
