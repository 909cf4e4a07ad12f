"""Which single weights become zero: a criterion is one file here, one row of this table, and its maths under the same
name in `pruning/weight/`."""

from shortened_llm.criteria.weight import magnitude, mrp, sparsegpt, wanda
from shortened_llm.criteria.weight.criterion import WeightCriterion

WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    "wanda": wanda.CRITERION,
    "sparsegpt": sparsegpt.CRITERION,
    "mrp": mrp.CRITERION,
    "magnitude": magnitude.CRITERION,
}
"""In the order in which messages and help list them."""
