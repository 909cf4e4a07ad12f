"""Scratch: the same shape from random weights, to tell what those of the dense model are worth."""

from typing import Annotated

from shortened_llm.fields import LOG, Axis
from shortened_llm.methods.method import Method, OptimizerOptions, Rate, Rates, alone


class ScratchOptions(OptimizerOptions):
    """All weights, drawn as the architecture's code draws them before any training, then trained by next-token
    cross-entropy: what a model of this shape becomes on the same tokens without the dense one's weights. The rate is
    that of LLaMA 7B, arXiv 2302.13971."""

    learning_rate: Annotated[Axis[Rate, Rates], LOG] = (3e-4,)
    """Peak learning rate; a list or a range is an axis of the search."""


METHOD = Method(
    options=ScratchOptions,
    summary="random weights, trained on the text alone",
    chains=alone("scratch"),
    from_random=True,
    presets={"short": {"learning_rate": 1e-3, "warmup_ratio": 0.1}},
    learning_rates=(1e-4, 3e-3),
)
