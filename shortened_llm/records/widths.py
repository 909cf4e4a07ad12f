"""How much each head and each MLP channel matters."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shortened_llm.records.scores import UnitScores, ranking_name
from shortened_llm.records.weights import WeightRanking


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowing:
    """How scores become widths."""

    parts: Literal["both", "mlp", "attention"]
    allocation: Literal["uniform", "global"]
    round_to: int
    """The number of channels that a block keeps is a multiple of it."""
    protect_first: int = 0
    """Leading blocks that keep their width."""
    protect_last: int = 0
    """Trailing ones."""

    def cut(self, num_blocks: int) -> range:
        """The blocks of so many that become narrower."""
        return range(min(self.protect_first, num_blocks), max(0, num_blocks - self.protect_last))


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthScores:
    """How much each key-value head, with its query heads, and each MLP channel of a model matters by one criterion."""

    criterion: str
    groups: tuple[str, ...]
    """Scores of the groups of each block, packed: see `unpacked`. The lowest goes first."""
    channels: tuple[str, ...]
    """Those of the channels."""
    narrowing: Narrowing
    is_standardised: bool = False
    """Whether scores of different blocks, and of heads and channels, compare as they are."""
    tokens: int = 0
    """Calibration tokens read: sequences times their length."""
    protocol: str
    """Text, lengths, dtype and options behind the scores, in words."""
    fingerprint: str
    calibration: str | None = None
    """What tells the calibration text from others of the experiment, where a criterion reads several."""
    settings: str | None = None
    """What tells the criterion's settings from others of the experiment, where it is asked for with several."""

    unit: Literal["width"] = "width"

    @property
    def ranking(self) -> str:
        """The criterion, and what tells this ranking from others by it, such as `flap (width)`."""
        return ranking_name(self.criterion, "width", self.calibration, self.settings)


Scores = UnitScores | WidthScores | WeightRanking
"""What a criterion says of a model."""


def packed(scores: Sequence[float]) -> str:
    """Scores as base64 of 32-bit numbers: there are many."""
    return base64.b64encode(struct.pack(f"<{len(scores)}f", *scores)).decode()


def unpacked(text: str) -> tuple[float, ...]:
    """The scores that were packed, rounded to 32 bits."""
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 4}f", data)
