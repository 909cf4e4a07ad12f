"""What is done to the dense model, and what asked for it."""

from dataclasses import dataclass
from typing import Literal

from shortened_llm.records.model import Size
from shortened_llm.records.scores import ranking_name
from shortened_llm.records.transform import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How small a model shall become."""

    of: Literal["blocks", "parameters", "bytes"]
    """What the ratio is a fraction of."""
    ratio: float
    """Fraction to remove; `removed_blocks / num_blocks` where a count was asked for."""

    @property
    def name(self) -> str:
        """`20%`, or `20% of parameters`."""
        return f"{100 * self.ratio:.3g}%" + ("" if self.of == "blocks" else f" of {self.of}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLabel:
    """A point of the search space that led to a plan."""

    criterion: str
    target: Target
    calibration: str | None = None
    """See `BlockScores`."""
    settings: str | None = None
    """See `BlockScores`."""

    @property
    def ranking(self) -> str:
        """`BlockScores.ranking` of the scores that led to the plan."""
        return ranking_name(self.criterion, self.calibration, self.settings)


Bin = tuple[str, float]
"""`("blocks", number that stays)`, since ratios that remove as many blocks are one target, or (unit, ratio)."""


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
        bins = (("blocks", self.size.blocks) if one.of == "blocks" else (one.of, one.ratio) for one in asked)
        return tuple(dict.fromkeys(bins))

    @property
    def removed_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that go, ascending."""
        return next((t.removed(self.dense.blocks) for t in self.transforms if t.kind == "blocks"), ())

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
