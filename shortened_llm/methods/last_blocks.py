"""Last blocks: the end of the model alone."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from shortened_llm.methods.method import SHORT_FULL, Method, ModelParts, OptimizerOptions, alone


class LastBlocksOptions(OptimizerOptions):
    """Head, final norm and the last blocks; a head that is tied to the embeddings trains these with it."""

    num_blocks: int = Field(3, ge=0)
    """Blocks that are trained (count), the last ones."""


def last_modules(parts: ModelParts, options: LastBlocksOptions) -> Iterable[Any]:
    """The last blocks and what follows them."""
    first = max(0, len(parts.blocks) - options.num_blocks)
    return (*parts.blocks[first:], parts.head, parts.final_norm)


METHOD = Method(
    options=LastBlocksOptions,
    summary="head and last blocks only",
    chains=alone("last_blocks"),
    trained=last_modules,
    presets={"short": SHORT_FULL},
)
