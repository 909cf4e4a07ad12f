"""What can be done to a model's files when they are loaded: one row for each kind, one file for what it does."""

from shortened_llm.models.transforms.blocks import BLOCKS
from shortened_llm.models.transforms.kind import TransformKind
from shortened_llm.models.transforms.sublayers import SUBLAYERS
from shortened_llm.models.transforms.tensors import TENSORS
from shortened_llm.models.transforms.weights import WEIGHTS
from shortened_llm.models.transforms.widths import WIDTHS

KINDS: dict[str, TransformKind] = {
    "blocks": BLOCKS, "sublayers": SUBLAYERS, "widths": WIDTHS, "tensors": TENSORS, "weights": WEIGHTS,
}  # fmt: skip
"""In the order in which they are done: what renumbers the blocks comes first, what has the final form last."""
