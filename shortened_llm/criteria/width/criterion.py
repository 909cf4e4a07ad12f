"""What a criterion of widths is: it scores each key-value head, with its query heads, and each MLP channel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shortened_llm.criteria.criterion import CriterionRow

INPUTS = "width_input_statistics"
"""Statistics of what the output projections of attention and MLP read, [blocks, 6, attention inputs + channels], fp64:
`MEAN`, `VARIANCE` and `NORM` over tokens, `COLUMN_MEAN` and `COLUMN_SQUARES` of the projection, `PUBLIC_VARIANCE`."""
MEAN, VARIANCE, NORM, COLUMN_MEAN, COLUMN_SQUARES, PUBLIC_VARIANCE = range(6)
"""Mean, variance and Euclidean norm of an input over all tokens; mean of |weight| and sum of weight^2 of its column;
what the public code of FLAP takes for the variance: see `FlapOptions`."""
WEIGHTS = "width_weights"
"""Sums of |weight| and of weight^2 of each unit, [blocks, 2, groups + channels], fp64."""
OPTIMAL_BRAIN = "width_optimal_brain"
"""Sums of W² / [(2 X Xᵀ)⁻¹]_jj over the weights of each unit, [blocks, 1, groups + channels], fp64."""
TAYLOR = "width_taylor"
"""Importance by weight x dL/dweight of each unit, [blocks, 1, groups + channels], fp64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthMeasured:
    """What a criterion's scores are reduced from."""

    values: np.ndarray
    """What was measured; the indices of the blocks where nothing is."""
    groups: int
    channels: int
    options: Any
    """The criterion's own."""

    def of_groups(self, inputs: np.ndarray) -> np.ndarray:
        """The mean over the inputs of each group, of numbers [blocks, inputs of attention + channels]."""
        heads = inputs[:, : inputs.shape[1] - self.channels]
        return heads.reshape(len(heads), self.groups, -1).mean(axis=2)

    def of_channels(self, inputs: np.ndarray) -> np.ndarray:
        """The numbers of the channels, [blocks, channels], which come last."""
        return inputs[:, inputs.shape[1] - self.channels :]

    def split(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers [blocks, groups + channels] as those of the groups and those of the channels."""
        return units[:, : self.groups], units[:, self.groups :]


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthCriterion(CriterionRow):
    """One row of the table."""

    reduce: Callable[[WidthMeasured], tuple[np.ndarray, np.ndarray]]
    """Scores of the groups, [blocks, groups], and of the channels, [blocks, channels]; the lowest goes first."""

    is_standardised: bool = False
    """Whether scores of different blocks, and of heads and channels, compare as they are."""

    @property
    def reads_options(self) -> bool:
        """Whether the measurement depends on the options; if not, criteria share it."""
        return self.measured not in (INPUTS, WEIGHTS)


def standardised(values: np.ndarray) -> np.ndarray:
    """Values [blocks, units], with mean 0 and deviation 1 in each block; 0 where all are equal."""
    deviation = values.std(axis=1, keepdims=True)
    return (values - values.mean(axis=1, keepdims=True)) / np.where(deviation == 0, 1, deviation)
