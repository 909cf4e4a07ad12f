"""None: the pruned model as it is."""

from shortened_llm.methods.method import Method

METHOD = Method(options=None, summary="nothing is trained", chains=lambda options: ((),))
