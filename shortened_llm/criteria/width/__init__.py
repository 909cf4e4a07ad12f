"""How much each head and each MLP channel matters: a criterion is one file here and one row of this table."""

from shortened_llm.criteria.width import flap, magnitude, optimal_brain, random_order, taylor, wanda_sp
from shortened_llm.criteria.width.criterion import WidthCriterion

WIDTH_CRITERIA: dict[str, WidthCriterion] = {
    "flap": flap.CRITERION,
    "wanda_sp": wanda_sp.CRITERION,
    "optimal_brain": optimal_brain.CRITERION,
    "taylor": taylor.CRITERION,
    "magnitude": magnitude.CRITERION,
    "random": random_order.CRITERION,
}
"""In the order in which messages and help list them."""
