"""Magnitude: the smallest weights go."""

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.weight.criterion import WeightCriterion


class WeightMagnitudeOptions(CriterionOptions):
    """The smallest absolute values of each matrix go, or of each group of a pattern N:M. No data. Source: the baseline
    of Han et al., arXiv 1506.02626."""


CRITERION = WeightCriterion(options=WeightMagnitudeOptions, reads_text=False)
