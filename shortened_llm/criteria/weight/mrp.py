"""MRP: what goes is chosen by what it costs once the weights that stay have made up for it, and they do, together."""

import math
from typing import Literal

from pydantic import Field

from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightOptions

MOST_CHOICES = 1000
"""The most choices of a group that are tried one by one."""


class MrpOptions(WeightOptions):
    """With C the inverse of 2 X Xᵀ, and P what a row loses: by itself a weight costs w² / (2 C_jj), together those of P
    cost ½ w_P (C_PP)⁻¹ w_Pᵀ. Source: MRP, arXiv 2410.15567, section 3, whose variants SS, SM, MS and MM name the two
    fields in this order, S for single and M for joint."""

    mask: Literal["single", "joint"] = "single"
    """What goes. single: of each output the weights that cost least, each by itself; joint: of each group of a pattern
    N:M the weights that cost least together, of all choices."""
    update: Literal["single", "joint"] = "joint"
    """How the weights that stay make up for it. single: column after column, those behind it, as sparsegpt does; joint:
    all for all, the best there is for a mask."""
    damping: float = Field(0.01, gt=0)
    """Share of the mean of its diagonal that is added to the diagonal of 2 X Xᵀ."""

    def check(self, name: str, pattern: str) -> None:
        if self.mask == "joint" and pattern == "unstructured":
            raise ValueError(
                f"{name}.mask is 'joint', which tries all choices of a group, but pattern is unstructured; "
                "give a pattern N:M such as '2:4', or mask: single"
            )
        if self.mask == "joint" and (choices := math.comb(*map(int, reversed(pattern.split(":"))))) > MOST_CHOICES:
            raise ValueError(
                f"{name}.mask is 'joint', which tries all choices of a group, but pattern {pattern} has {choices:,}, "
                f"more than {MOST_CHOICES:,}; give smaller groups, or mask: single"
            )


CRITERION = WeightCriterion(options=MrpOptions, reads_text=True, joint=True, changes_weights=True)
