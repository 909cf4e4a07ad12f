"""How much each block matters: a criterion is one file here and one row of this table.

Neither torch nor any other part of this package is imported, so that the user's schema can be checked against the rows.
"""

from shortened_llm.criteria import (
    angular_span,
    block_influence,
    greedy_ppl,
    kl,
    last_n,
    magnitude,
    ppl,
    random_order,
    taylor,
)
from shortened_llm.criteria.criterion import Criterion

CRITERIA: dict[str, Criterion] = {
    "ppl": ppl.CRITERION,
    "taylor": taylor.CRITERION,
    "magnitude": magnitude.CRITERION,
    "block_influence": block_influence.CRITERION,
    "angular_span": angular_span.CRITERION,
    "kl": kl.CRITERION,
    "greedy_ppl": greedy_ppl.CRITERION,
    "last_n": last_n.CRITERION,
    "random": random_order.CRITERION,
}
"""In the order in which messages and help list them."""
