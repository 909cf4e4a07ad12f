"""What a criterion is, and what every criterion yields."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

# Statistics of the walk over the blocks that several criteria share; [sequences, ...], fp64.
NLL = "nll"
"""Mean loss in nats per prediction, [sequences, 1 + units]: of the dense model, then without each unit."""
KL = "kl"
"""Mean over predictions of KL(dense || without the unit) in nats, [sequences, units]."""
COSINE = "cosine"
"""Mean over tokens of the cosine between the hidden states before and after each unit, [sequences, units]."""
ANGLE = "angle"
"""Angle / pi between the last token's hidden states before block m and before block n, [sequences, blocks + 1,
blocks + 1]; the last index is the last block's output."""
STATISTICS = (NLL, KL, COSINE, ANGLE)


class CriterionOptions(BaseModel):
    """What a user may set of a criterion; the docstring gives its formula and source."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStatistic:
    """A statistic that a criterion adds to the walk: one number per sequence and unit, from the hidden states before
    and after it."""

    name: str
    function: Callable[[Any, Any], Any]
    """From the dense model's hidden states before and after the unit, tensors [sequences, length, hidden], to a tensor
    [sequences]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a criterion's scores are reduced from."""

    values: np.ndarray
    """What was measured; the numbers of the units where nothing is."""
    protected: tuple[int, ...]
    """Units that a plan never removes."""
    options: Any
    """The criterion's own `CriterionOptions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionScores:
    """One score per unit, a block or a sub-layer, in model order; the lowest is removed first."""

    scores: tuple[float | None, ...]
    """None for a unit that is never scored: it comes last."""
    standard_errors: tuple[float, ...] | None = None
    dense_perplexity: float | None = None
    sets: tuple[tuple[int, ...], ...] | None = None
    """Units to remove, ascending, per count, where they are chosen anew for each."""
    removal_order: tuple[int, ...] | None = None
    """Units, first removed first, where that is not the order of the scores."""

    @property
    def order(self) -> tuple[int, ...]:
        """Units, least important first; of equal scores, the earlier one first."""
        if self.removal_order is not None:
            return self.removal_order
        scores = [float("inf") if score is None else score for score in self.scores]
        return tuple(sorted(range(len(scores)), key=lambda unit: (scores[unit], unit)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionRow:
    """One row of a table of criteria, whatever they rank."""

    options: type[CriterionOptions]
    reads_text: bool
    """Whether what the criterion decides by depends on calibration text."""
    measured: str | BlockStatistic | None = None
    """A statistic of the walk, by name or a new one; the name of a measurement of its own (`scoring/measure.py`); None
    where nothing is measured."""
    searches: bool = False
    """Whether the measurement depends on the protected units, and on how many go."""

    @property
    def statistic(self) -> str | None:
        """The name of what is measured."""
        return self.measured.name if isinstance(self.measured, BlockStatistic) else self.measured

    @property
    def reads_options(self) -> bool:
        """Whether the measurement depends on the options."""
        return not self.is_walked

    @property
    def is_walked(self) -> bool:
        """Whether a walk that other criteria share measures it, one value or more for each calibration sequence."""
        return isinstance(self.measured, BlockStatistic) or self.measured in STATISTICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion(CriterionRow):
    """One row of the table of criteria of blocks and sub-layers."""

    units: tuple[str, ...] = ("block",)
    """What the criterion can rank."""
    reduce: Callable[[Measured], CriterionScores]


def mean_scores(per_sequence: np.ndarray) -> CriterionScores:
    """Scores that are means over calibration sequences, of values [sequences, units]."""
    return CriterionScores(
        scores=tuple(per_sequence.mean(axis=0).tolist()), standard_errors=floats(standard_errors(per_sequence))
    )


def standard_errors(per_sequence: np.ndarray) -> np.ndarray | None:
    """Standard error of the mean over sequences, for values [sequences, ...]; None for a single sequence.

    Over sequences, not tokens: the tokens of one sequence are correlated.
    """
    if len(per_sequence) < 2:
        return None
    return per_sequence.std(axis=0, ddof=1) / np.sqrt(len(per_sequence))


def floats(values: np.ndarray | None) -> tuple[float, ...] | None:
    """An array [units] as it stands in a record."""
    return None if values is None else tuple(values.tolist())
