"""What is done to the dense model, and what asked for it."""

from dataclasses import dataclass
from typing import Literal

from shortened_llm.records.model import Size
from shortened_llm.records.scores import ranking_name
from shortened_llm.records.transform import BlocksTransform, Transform, of_kind
from shortened_llm.records.units import PruneUnit, num_units, units_gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How small a model shall become."""

    of: Literal["blocks", "sublayers", "weights", "parameters", "nonzero", "bytes"]
    """What the ratio is a fraction of."""
    ratio: float
    """Fraction to remove; `removed_blocks / num_blocks` where a count was asked for."""

    @property
    def name(self) -> str:
        """`20%`, of blocks, sub-layers or weights, or `20% of parameters`."""
        return f"{100 * self.ratio:.3g}%" + ("" if self.of in ("blocks", "sublayers", "weights") else f" of {self.of}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLabel:
    """A point of the search space that led to a plan."""

    criterion: str
    target: Target
    unit: PruneUnit = "block"
    """What the criterion ranks."""
    calibration: str | None = None
    """See `UnitScores`."""
    settings: str | None = None
    """See `UnitScores`."""

    @property
    def ranking(self) -> str:
        """`UnitScores.ranking` of the scores that led to the plan."""
        return ranking_name(self.criterion, self.unit, self.calibration, self.settings)


Bin = tuple[str, float]
"""`("blocks", number that stays)`, or of sub-layers, since ratios that remove as many are one target; or (what a ratio
is a fraction of, ratio)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What is done to the dense model. Labels that lead to the same transforms share one plan."""

    transforms: tuple[Transform, ...]
    """The transforms of a view of the dense model; none where nothing is removed."""
    labels: tuple[PlanLabel, ...]
    size: Size
    dense: Size
    """The size of the dense model."""

    @property
    def targets(self) -> tuple[Bin, ...]:
        """What the plan competes in, each once: plans of one target are candidates for the same place."""
        asked = (label.target for label in self.labels)
        return tuple(dict.fromkeys(map(self._bin, asked)))

    def _bin(self, asked: Target) -> Bin:
        if asked.of == "blocks":
            return "blocks", self.size.blocks
        if asked.of == "sublayers":
            gone = units_gone("sublayer", self.transforms, self.dense.blocks)
            return "sublayers", num_units("sublayer", self.dense.blocks) - len(gone)
        return asked.of, asked.ratio

    @property
    def removed_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that go, ascending."""
        blocks = of_kind(self.transforms, BlocksTransform)
        return blocks.removed(self.dense.blocks) if blocks else ()

    @property
    def facts(self) -> dict[str, str]:
        """Columns of a table that say what was done, by name; those of kinds that were not used are absent."""
        return {name: text for t in self.transforms for name, text in t.facts(self.dense.blocks).items()}

    @property
    def block_ratio(self) -> float:
        """Removed blocks / all blocks."""
        return 1 - self.size.blocks / self.dense.blocks

    @property
    def parameter_ratio(self) -> float:
        """Removed parameters / all parameters."""
        return 1 - self.size.parameters / self.dense.parameters

    @property
    def name(self) -> str:
        """A short name for logs and tables, such as `ppl+taylor 20%`."""
        criteria = "+".join(dict.fromkeys(label.ranking for label in self.labels))
        targets = "/".join(dict.fromkeys(label.target.name for label in self.labels))
        return f"{criteria} {targets}"
