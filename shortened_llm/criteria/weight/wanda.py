"""Wanda: the size of a weight, times the size of what it reads."""

from shortened_llm.criteria.weight.criterion import WeightCriterion, WeightOptions


class WandaOptions(WeightOptions):
    """The smallest |weight| x Euclidean norm of its input over tokens go, among those of one output, or of each group
    of a pattern N:M. Forward passes alone. Source: Wanda, arXiv 2306.11695, section 3."""


CRITERION = WeightCriterion(options=WandaOptions, reads_text=True)
