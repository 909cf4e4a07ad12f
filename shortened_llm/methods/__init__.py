"""How a pruned model recovers: a retraining method is one file here and one row of this table.

Neither torch nor a stage is imported, so that the user's schema can be checked against the rows.
"""

from shortened_llm.methods import cpt, cpt_lora, distill, last_blocks, lora, none, scratch
from shortened_llm.methods.method import Method

METHODS: dict[str, Method] = {
    "none": none.METHOD,
    "cpt": cpt.METHOD,
    "lora": lora.METHOD,
    "cpt_lora": cpt_lora.METHOD,
    "distill": distill.METHOD,
    "last_blocks": last_blocks.METHOD,
    "scratch": scratch.METHOD,
}
"""In the order in which messages and help list them."""
