"""The section `pruning`: an entry of one kind, or a list of entries of several."""

from typing import Annotated

from pydantic import Discriminator, Tag

from shortened_llm.config.base import DEPTH, WEIGHT, WIDTH
from shortened_llm.config.depth import DepthPruning
from shortened_llm.config.weight import WeightPruning
from shortened_llm.config.width import WidthPruning


def _which(value: object) -> str:
    """Which kind of entry it is: `block` unless its unit says otherwise."""
    unit = value.get("unit") if isinstance(value, dict) else getattr(value, "unit", None)
    return {"width": WIDTH, "weight": WEIGHT}.get(str(unit), DEPTH)


Pruning = Annotated[
    Annotated[DepthPruning, Tag(DEPTH)] | Annotated[WidthPruning, Tag(WIDTH)] | Annotated[WeightPruning, Tag(WEIGHT)],
    Discriminator(_which),
]
"""An entry of the section."""
