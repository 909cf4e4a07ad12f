"""Magnitude: the size of a unit's weights. No data."""

from typing import Literal

import numpy as np

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import WEIGHTS, WidthCriterion, WidthMeasured


class WidthMagnitudeOptions(CriterionOptions):
    """Norm of all weights of a head or channel: its rows of the input projections and its columns of the output
    projection. Source: the baseline of LLM-Pruner, arXiv 2305.11627, section 4 ("L1", "L2")."""

    norm: Literal["l1", "l2"] = "l2"
    """Sum of absolute values, or Euclidean norm."""


def magnitude_scores(measured: WidthMeasured) -> tuple[np.ndarray, np.ndarray]:
    """Scores of groups and channels."""
    absolute, squares = measured.values[:, 0], measured.values[:, 1]
    return measured.split(absolute if measured.options.norm == "l1" else np.sqrt(squares))


CRITERION = WidthCriterion(options=WidthMagnitudeOptions, measured=WEIGHTS, reads_text=False, reduce=magnitude_scores)
