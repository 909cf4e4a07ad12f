"""The two sub-layers of a block, its attention and its MLP, and a block without one."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shortened_llm.errors import BadInputError
from shortened_llm.records import PARTS, Part

PART_NAMES: dict[Part, tuple[str, ...]] = {
    "attention": ("self_attn", "attention", "attn", "self_attention"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "ffn"),
}
"""Names of the sub-layers in blocks, in memory and in files."""


class NoPart(nn.Module):
    """In place of a sub-layer: adds nothing to the hidden states, and has no weights."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> Any:
        """Zeros like `hidden_states`; of attention also the weights that no one asked for."""
        # A product, so that the norm in front has a gradient of zero like any weight: without any, checkpoints of the
        # optimiser would lack its state.
        nothing = hidden_states * 0
        return (nothing, None) if self.part == "attention" else nothing


def part_name(block: nn.Module, part: Part) -> str:
    """The name of a sub-layer in a block.

    Raises:
        BadInputError: the block has no such module.
    """
    found = [name for name in PART_NAMES[part] if isinstance(getattr(block, name, None), nn.Module)]
    if len(found) != 1:
        raise BadInputError(
            f"pruning.unit: {type(block).__name__} has no module for its {part}, named {', '.join(PART_NAMES[part])}: "
            "its sub-layers cannot be removed; use unit: block"
        )
    return found[0]


def lacks(block: nn.Module, part: Part) -> bool:
    """Whether the sub-layer has been removed."""
    return isinstance(getattr(block, part_name(block, part)), NoPart)


def remove_part(block: nn.Module, part: Part) -> None:
    """Replace a sub-layer, and its weights, by nothing; raises as `part_name`."""
    setattr(block, part_name(block, part), NoPart(part))


@contextmanager
def without_parts(block: nn.Module, parts: Collection[Part]) -> Iterator[None]:
    """The block without some sub-layers, while the context lasts; raises as `part_name`."""
    removed = {name: getattr(block, name) for name in (part_name(block, part) for part in parts)}
    for part in parts:
        remove_part(block, part)
    try:
        yield
    finally:
        for name, module in removed.items():
            setattr(block, name, module)


def parts_of_blocks(blocks: Iterable[nn.Module]) -> list[dict[Part, nn.Module]]:
    """Each block's attention and MLP; none of any block where not all have such modules."""
    every = list(blocks)
    try:
        return [{part: getattr(block, part_name(block, part)) for part in PARTS} for block in every]
    except BadInputError:
        return [{} for _ in every]


def part_sizes(blocks: Iterable[nn.Module]) -> tuple[tuple[int, ...], ...] | None:
    """Numbers of parameters of each block's attention and MLP; None where there are no such modules."""
    found = parts_of_blocks(blocks)
    if not all(found):
        return None
    return tuple(tuple(sum(weight.numel() for weight in part.parameters()) for part in of.values()) for of in found)
