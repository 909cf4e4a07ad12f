"""How single weights are chosen."""

from dataclasses import dataclass
from typing import Literal

from shortened_llm.records.scores import ranking_name


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRanking:
    """A criterion of single weights: it has no scores ahead, since each block is pruned behind the pruned ones."""

    criterion: str
    pattern: str
    """`unstructured`, or N:M: N of M consecutive inputs stay."""
    calibration: str | None = None
    """What tells the calibration text from others of the experiment, where a criterion reads several."""
    settings: str | None = None
    """What tells the criterion's settings from others of the experiment, where it is asked for with several."""

    unit: Literal["weight"] = "weight"

    @property
    def ranking(self) -> str:
        """The criterion, and what tells it from others, such as `wanda (weights)`."""
        return ranking_name(self.criterion, "weight", self.calibration, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralExponents:
    """How heavy the tails of the spectra of a model's weights are."""

    of_blocks: tuple[float, ...]
    """Mean exponent of the matrices of each block."""
