"""What is done to a model's files when they are loaded."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from shortened_llm.records.files import Payload

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
"""The sub-layers of a block, in the order in which most architectures add them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksTransform:
    """Keep some blocks of a model, in their order."""

    kept: tuple[int, ...]
    """Indices of the blocks that stay, ascending."""
    kind: Literal["blocks"] = "blocks"

    is_compact: ClassVar[bool] = True
    """Whether a plain export holds only what the transform leaves. Else it holds zeros in the place of the rest, and
    the exported files are loaded under the transform again."""

    @classmethod
    def without(cls, removed: Collection[int], num_blocks: int) -> "BlocksTransform":
        """Take blocks away from a model of so many."""
        return cls(kept=tuple(block for block in range(num_blocks) if block not in removed))

    def changes(self, num_blocks: int) -> bool:
        """Whether a model of so many blocks loses any."""
        return self.kept != tuple(range(num_blocks))

    def removed(self, num_blocks: int) -> tuple[int, ...]:
        """Indices of the blocks that go, ascending."""
        return tuple(block for block in range(num_blocks) if block not in self.kept)

    def describe(self, num_blocks: int) -> str:
        """What was done, in words that follow the name of a model."""
        return f"without blocks {', '.join(map(str, self.removed(num_blocks)))}"

    def facts(self, num_blocks: int) -> dict[str, str]:
        """Columns of a table that say what was done, by name."""
        return {
            "kept_blocks": " ".join(map(str, self.kept)),
            "removed_blocks": " ".join(map(str, self.removed(num_blocks))),
        }

    def then(self, later: "BlocksTransform") -> "BlocksTransform":
        """Both as one, where `later` has this one's indices."""
        return later

    def renumbered(self, new: Mapping[int, int]) -> "BlocksTransform":
        """With each block's index replaced; those of blocks that have none are left out."""
        return BlocksTransform(kept=tuple(new[block] for block in self.kept if block in new))


@dataclass(frozen=True, slots=True, kw_only=True)
class SublayersTransform:
    """Remove the attention of some blocks, and the MLP of some."""

    removed: tuple[tuple[int, Part], ...]
    """(block, part), ascending, the attention of a block first. Of a block that loses both, `BlocksTransform` knows."""
    kind: Literal["sublayers"] = "sublayers"

    is_compact: ClassVar[bool] = False

    @classmethod
    def without(cls, removed: Iterable[tuple[int, Part]]) -> "SublayersTransform":
        """Take sub-layers away, given in any order."""
        return cls(removed=tuple(sorted(set(removed), key=lambda one: (one[0], PARTS.index(one[1])))))

    def changes(self, num_blocks: int) -> bool:
        """Whether anything is removed."""
        return bool(self.removed)

    def parts_of(self, block: int) -> tuple[Part, ...]:
        """What the block loses."""
        return tuple(part for other, part in self.removed if other == block)

    def describe(self, num_blocks: int) -> str:
        """What was done, in words that follow the name of a model."""
        return "without " + " and ".join(
            f"the {title} of blocks {', '.join(map(str, blocks))}"
            for part, title in (("attention", "attention"), ("mlp", "MLP"))
            if (blocks := [block for block, other in self.removed if other == part])
        )

    def facts(self, num_blocks: int) -> dict[str, str]:
        """Columns of a table that say what was done, by name."""
        return {
            f"removed_{part}": " ".join(str(block) for block, other in self.removed if other == part) for part in PARTS
        }

    def then(self, later: "SublayersTransform") -> "SublayersTransform":
        """Both as one, where `later` has this one's indices."""
        return SublayersTransform.without((*self.removed, *later.removed))

    def renumbered(self, new: Mapping[int, int]) -> "SublayersTransform":
        """With each block's index replaced; those of blocks that have none are left out."""
        return SublayersTransform.without((new[block], part) for block, part in self.removed if block in new)


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthsTransform:
    """Keep some heads and MLP channels of each block: see `models/axes.py` for what a group and a channel are."""

    num_groups: int
    """Key-value heads of each block in the files, each with its query heads."""
    num_channels: int
    """MLP channels of each block in the files."""
    groups: tuple[tuple[int, str], ...] = ()
    """(block, packed bits of the groups that stay), ascending; all stay in a block that is not named."""
    channels: tuple[tuple[int, str], ...] = ()
    """(block, packed bits of the channels that stay), likewise."""
    kind: Literal["widths"] = "widths"

    is_compact: ClassVar[bool] = True

    @classmethod
    def keeping(
        cls,
        *,
        num_groups: int,
        num_channels: int,
        groups: Mapping[int, Collection[int]] | None = None,
        channels: Mapping[int, Collection[int]] | None = None,
    ) -> "WidthsTransform":
        """Keep what is listed for each block, and all of the others."""
        return cls(
            num_groups=num_groups,
            num_channels=num_channels,
            groups=_packed(groups or {}, num_groups),
            channels=_packed(channels or {}, num_channels),
        )

    def kept_groups(self, block: int) -> tuple[int, ...]:
        """The groups of a block that stay, ascending."""
        return _unpacked(self.groups, block, self.num_groups)

    def kept_channels(self, block: int) -> tuple[int, ...]:
        """The channels of a block that stay, ascending."""
        return _unpacked(self.channels, block, self.num_channels)

    def changes(self, num_blocks: int) -> bool:
        """Whether anything is removed."""
        return bool(self.groups or self.channels)

    def describe(self, num_blocks: int) -> str:
        """What was done, in words that follow the name of a model."""
        parts = [f"{title} {text}" for title, text in self._kept(num_blocks)]
        return f"with {' and '.join(parts)} in each block"

    def facts(self, num_blocks: int) -> dict[str, str]:
        """Columns of a table that say what was done, by name."""
        return {f"kept_{title}": text for title, text in self._kept(num_blocks)}

    def _kept(self, num_blocks: int) -> tuple[tuple[str, str], ...]:
        found = []
        for title, kept, total in (
            ("kv_heads", self.kept_groups, self.num_groups), ("channels", self.kept_channels, self.num_channels)
        ):  # fmt: skip
            numbers = [len(kept(block)) for block in range(num_blocks)]
            low, high = min(numbers), max(numbers)
            if low < total:
                found.append((title, f"{low} of {total}" if low == high else f"{low} to {high} of {total}"))
        return tuple(found)

    def then(self, later: "WidthsTransform") -> "WidthsTransform":
        """Both as one, where `later` has this one's blocks, and the units that this one leaves of each."""
        blocks = {block for block, _ in (*self.groups, *self.channels, *later.groups, *later.channels)}
        return WidthsTransform.keeping(
            num_groups=self.num_groups,
            num_channels=self.num_channels,
            groups={block: _of_these(self.kept_groups(block), later.kept_groups(block)) for block in blocks},
            channels={block: _of_these(self.kept_channels(block), later.kept_channels(block)) for block in blocks},
        )

    def renumbered(self, new: Mapping[int, int]) -> "WidthsTransform":
        """With each block's index replaced; those of blocks that have none are left out."""
        return replace(
            self,
            groups=tuple(sorted((new[block], bits) for block, bits in self.groups if block in new)),
            channels=tuple(sorted((new[block], bits) for block, bits in self.channels if block in new)),
        )


def _packed(kept: Mapping[int, Collection[int]], number: int) -> tuple[tuple[int, str], ...]:
    """Hexadecimal digits, the bit of unit i being worth 2^i; blocks that keep everything are left out."""
    bits = {block: sum(1 << unit for unit in set(units)) for block, units in kept.items()}
    return tuple((block, f"{value:x}") for block, value in sorted(bits.items()) if value != (1 << number) - 1)


def _unpacked(packed: tuple[tuple[int, str], ...], block: int, number: int) -> tuple[int, ...]:
    for other, bits in packed:
        if other == block:
            value = int(bits, 16)
            return tuple(unit for unit in range(number) if value >> unit & 1)
    return tuple(range(number))


def _of_these(kept: Sequence[int], later: Sequence[int]) -> tuple[int, ...]:
    """Those that `later` keeps of the kept ones; behind these, a padded export holds zeros."""
    return tuple(kept[index] for index in later if index < len(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorsTransform:
    """Read some tensors of the blocks from other files, which hold them as the other transforms would leave them."""

    fingerprint: str
    """Identity of the tensors: what they were computed from."""
    words: str
    """What was computed, behind "with", such as `refitted output projections`."""
    blocks: tuple[tuple[int, int], ...]
    """(block, its index in the names of the tensors), ascending; `3.mlp.down_proj.weight` is of the index 3."""
    config_fields: tuple[str, ...] = ()
    """Fields of the configuration that are true for the model to have all of these tensors."""
    added: int = 0
    """Number of parameters of each block that the model's own files lack."""
    payload: Payload | None = None
    """Where the tensors lie; None where a model that was exported since holds them."""
    kind: Literal["tensors"] = "tensors"

    is_compact: ClassVar[bool] = True

    def changes(self, num_blocks: int) -> bool:
        """Whether anything is changed."""
        return bool(self.blocks)

    def describe(self, num_blocks: int) -> str:
        """What was done, in words that follow the name of a model."""
        return f"with {self.words}"

    def facts(self, num_blocks: int) -> dict[str, str]:
        """Columns of a table that say what was done, by name."""
        return {"recomputed": self.words}

    def then(self, later: "TensorsTransform") -> "TensorsTransform":
        """Both as one, where `later` has this one's indices. What the earlier one computed is in the files by then."""
        return later

    def renumbered(self, new: Mapping[int, int]) -> "TensorsTransform":
        """With each block's index replaced; those of blocks that have none are left out."""
        return replace(self, blocks=tuple(sorted((new[block], name) for block, name in self.blocks if block in new)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsTransform:
    """Set single weights of the blocks' linear layers to zero."""

    fingerprint: str
    """Identity of the masks and weights: what they were computed from."""
    words: str
    """What was done, behind "with", such as `50 % of the blocks' weights zero (2:4, wanda)`."""
    blocks: tuple[tuple[int, int], ...]
    """(block, its index in the names of the tensors), ascending, as in `TensorsTransform`."""
    zeros: tuple[int, ...]
    """Weights (count) that are zero in each of these blocks."""
    weights: tuple[int, ...]
    """Weights (count) of the layers of each, of which they are."""
    pattern: str
    """`unstructured`, or N:M: N of M consecutive inputs stay."""
    layers: tuple[str, ...]
    """Names of the layers in a block whose weights may be zero."""
    payload: Payload | None = None
    """Where the masks, and weights that changed, lie; None where an export holds the zeros."""
    exchanged: int | None = None
    """Weights (count) that a refinement of the masks brought back in the place of others; None where there was none."""
    kind: Literal["weights"] = "weights"

    is_compact: ClassVar[bool] = True

    def changes(self, num_blocks: int) -> bool:
        """Whether any weight is set to zero."""
        return any(self.zeros)

    def describe(self, num_blocks: int) -> str:
        """What was done, in words that follow the name of a model."""
        return f"with {self.words}"

    def facts(self, num_blocks: int) -> dict[str, str]:
        """Columns of a table that say what was done, by name."""
        return {"zero_weights": self.words}

    def then(self, later: "WeightsTransform") -> "WeightsTransform":
        """Both as one, where `later` has this one's indices and found its zeros in the files."""
        return later

    def renumbered(self, new: Mapping[int, int]) -> "WeightsTransform":
        """With each block's index replaced; those of blocks that have none are left out."""
        left = sorted(
            (new[block], name, zeros, weights)
            for (block, name), zeros, weights in zip(self.blocks, self.zeros, self.weights, strict=True)
            if block in new
        )
        return replace(
            self,
            blocks=tuple((block, name) for block, name, _, _ in left),
            zeros=tuple(zeros for _, _, zeros, _ in left),
            weights=tuple(weights for *_, weights in left),
        )


Transform = BlocksTransform | SublayersTransform | WidthsTransform | TensorsTransform | WeightsTransform
"""What is done to a model's files when they are loaded, told apart by `kind`."""

Kind = TypeVar("Kind", BlocksTransform, SublayersTransform, WidthsTransform, TensorsTransform, WeightsTransform)
Stored = TensorsTransform | WeightsTransform
"""Those that files beside the model's belong to."""


def of_kind(transforms: Iterable[Transform], kind: type[Kind]) -> Kind | None:
    """The transform of a kind, where there is one."""
    return next((transform for transform in transforms if isinstance(transform, kind)), None)


def kept_blocks(transforms: Iterable[Transform], num_blocks: int) -> tuple[int, ...]:
    """Indices of the blocks that stay of so many, ascending."""
    blocks = of_kind(transforms, BlocksTransform)
    return tuple(range(num_blocks)) if blocks is None else blocks.kept


def without_places(transforms: Iterable[Transform]) -> tuple[Transform, ...]:
    """The transforms by what they do: where their tensors lie changes nothing."""
    return tuple(replace(one, payload=None) if isinstance(one, Stored) else one for one in transforms)


def in_order(transforms: Iterable[Transform], num_blocks: int) -> tuple[Transform, ...]:
    """The transforms that change anything, by kind, and nothing of blocks that go: each set of them in one way."""
    found = tuple(transforms)
    left = {block: block for block in kept_blocks(found, num_blocks)}
    changing = (one for one in (transform.renumbered(left) for transform in found) if one.changes(num_blocks))
    return tuple(sorted(changing, key=lambda transform: transform.kind))


def composed(first: Sequence[Transform], later: Sequence[Transform], num_blocks: int) -> tuple[Transform, ...]:
    """Two lists of transforms as one, in the indices of the first; `later` has those of the model that it leaves.

    Args:
        num_blocks: of the model that `first` leaves.
    """
    originals = dict(enumerate(kept_blocks(first, num_blocks)))
    by_kind: dict[str, Any] = {transform.kind: transform for transform in first}
    for transform in later:
        original, before = transform.renumbered(originals), by_kind.get(transform.kind)
        by_kind[transform.kind] = before.then(original) if before else original
    left = {block: block for block in kept_blocks(by_kind.values(), num_blocks)}
    changing = (by_kind[kind].renumbered(left) for kind in sorted(by_kind))
    return tuple(one for one in changing if isinstance(one, BlocksTransform) or one.changes(num_blocks))


def after_export(transforms: Sequence[Transform], num_blocks: int) -> tuple[Transform, ...]:
    """Under which transforms a plain export is loaded, in its own indices: those that left zeros in it, which nothing
    else tells from weights."""
    new = {block: index for index, block in enumerate(kept_blocks(transforms, num_blocks))}
    left = (one for one in transforms if not one.is_compact or isinstance(one, WeightsTransform))
    return without_places(one.renumbered(new) for one in left)
