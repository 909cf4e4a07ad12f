"""Magnitude: the smallest weights go."""

from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightOptions


class WeightMagnitudeOptions(WeightOptions):
    """The smallest absolute values of each matrix go, or of each group of a pattern N:M. No data. Source: the baseline
    of Han et al., arXiv 1506.02626."""


CRITERION = WeightCriterion(options=WeightMagnitudeOptions, reads_text=False)
