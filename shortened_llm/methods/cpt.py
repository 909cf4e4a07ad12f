"""Continued pretraining: all weights, by the loss of pretraining."""

from shortened_llm.methods.method import SHORT_FULL, Method, OptimizerOptions, alone


class CptOptions(OptimizerOptions):
    """Continued pretraining: all weights, by next-token cross-entropy. Source: Shortened LLaMA, arXiv 2402.02834."""


METHOD = Method(options=CptOptions, summary="continued pretraining", chains=alone("cpt"), presets={"short": SHORT_FULL})
