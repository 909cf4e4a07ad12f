"""What is done to a model's files when they are loaded."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksTransform:
    """Keep some blocks of a model, in their order."""

    kept: tuple[int, ...]
    """Indices of the blocks that stay, ascending."""
    kind: Literal["blocks"] = "blocks"

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
        """Both as one, in this one's indices; `later` has those of the model that this one leaves."""
        return BlocksTransform(kept=tuple(self.kept[block] for block in later.kept))


Transform = BlocksTransform
"""What is done to a model's files when they are loaded. A further kind makes this a union, told apart by `kind`."""


def composed(first: tuple[Transform, ...], later: tuple[Transform, ...]) -> tuple[Transform, ...]:
    """Two lists of transforms as one, in the indices of the first; `later` has those of the model that it leaves."""
    by_kind = {transform.kind: transform for transform in first}
    for transform in later:
        before = by_kind.get(transform.kind)
        by_kind[transform.kind] = before.then(transform) if before else transform
    return tuple(by_kind[kind] for kind in sorted(by_kind))
