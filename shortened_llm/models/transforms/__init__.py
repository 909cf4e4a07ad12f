"""What can be done to a model's files when they are loaded: one row for each kind, one file for what it does."""

from collections.abc import Sequence

from shortened_llm.models.transforms.blocks import BLOCKS
from shortened_llm.models.transforms.kind import BlockTime, TransformKind
from shortened_llm.models.transforms.sublayers import SUBLAYERS
from shortened_llm.models.transforms.tensors import TENSORS
from shortened_llm.models.transforms.weights import WEIGHTS
from shortened_llm.models.transforms.widths import WIDTHS
from shortened_llm.records import Transform, kept_blocks

KINDS: dict[str, TransformKind] = {
    "blocks": BLOCKS, "sublayers": SUBLAYERS, "widths": WIDTHS, "tensors": TENSORS, "weights": WEIGHTS,
}  # fmt: skip
"""In the order in which they are done: what renumbers the blocks comes first, what has the final form last."""


def times_left(times: Sequence[BlockTime], transforms: Sequence[Transform]) -> Sequence[BlockTime] | None:
    """The time of each block of the dense model once some of it is gone; None where it cannot be told."""
    kept, left = kept_blocks(transforms, len(times)), times
    for name, kind in KINDS.items():
        for transform in (one for one in transforms if one.kind == name):
            found = kind.time_left(left, kept, transform)
            if found is None:
                return None
            left = found
    return left
