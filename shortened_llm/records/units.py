"""What a criterion ranks and a plan removes: whole blocks, or their sub-layers. Each has a number, in model order."""

from collections.abc import Collection, Iterable
from typing import Literal

from shortened_llm.records.transform import PARTS, BlocksTransform, Part, SublayersTransform, Transform, of_kind

PruneUnit = Literal["block", "sublayer", "width", "weight"]
"""Units of width, heads and channels, and single weights have no numbers: what follows is about the others."""

UNIT_TITLES: dict[PruneUnit, tuple[str, ...]] = {"block": ("block",), "sublayer": ("attention", "MLP")}
"""What the units of one block are called, in their order."""


def num_units(unit: PruneUnit, num_blocks: int) -> int:
    """Number of units in so many blocks."""
    return num_blocks * len(UNIT_TITLES[unit])


def unit_name(unit: PruneUnit, number: int) -> str:
    """`block 3`, or `attention 3` and `MLP 3` for those of block 3."""
    block, place = divmod(number, len(UNIT_TITLES[unit]))
    return f"{UNIT_TITLES[unit][place]} {block}"


def units_of(unit: PruneUnit, blocks: Iterable[int]) -> tuple[int, ...]:
    """All units of some blocks, ascending."""
    per_block = len(UNIT_TITLES[unit])
    return tuple(sorted(block * per_block + place for block in blocks for place in range(per_block)))


def parts_of(unit: PruneUnit, number: int) -> tuple[int, tuple[Part, ...]]:
    """The block of a unit, and the sub-layers that the block loses with it."""
    block, place = divmod(number, len(UNIT_TITLES[unit]))
    return block, PARTS if unit == "block" else (PARTS[place],)


def lost_parts(unit: PruneUnit, removed: Iterable[int]) -> dict[int, tuple[Part, ...]]:
    """The sub-layers that blocks lose with some units, in the order of `PARTS`."""
    lost: dict[int, set[Part]] = {}
    for block, parts in (parts_of(unit, number) for number in removed):
        lost.setdefault(block, set()).update(parts)
    return {block: tuple(part for part in PARTS if part in parts) for block, parts in lost.items()}


def removal(unit: PruneUnit, removed: Collection[int], num_blocks: int) -> tuple[Transform, ...]:
    """What removing units does to a model of so many blocks. A block that loses both sub-layers goes as a whole."""
    lost = lost_parts(unit, removed)
    whole = [block for block, parts in lost.items() if parts == PARTS]
    single = [(block, part) for block, parts in lost.items() if block not in whole for part in parts]
    transforms: list[Transform] = [BlocksTransform.without(whole, num_blocks)] if whole else []
    return (*transforms, SublayersTransform.without(single)) if single else tuple(transforms)


def units_gone(unit: PruneUnit, transforms: Collection[Transform], num_blocks: int) -> tuple[int, ...]:
    """The units of so many blocks that transforms remove, ascending."""
    blocks, sublayers = of_kind(transforms, BlocksTransform), of_kind(transforms, SublayersTransform)
    gone = set(units_of(unit, blocks.removed(num_blocks) if blocks else ()))
    if sublayers and unit == "sublayer":
        gone |= {block * len(PARTS) + PARTS.index(part) for block, part in sublayers.removed}
    return tuple(sorted(gone))
