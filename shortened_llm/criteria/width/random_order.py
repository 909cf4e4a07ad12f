"""Random: heads and channels in a drawn order. The control that every criterion must beat."""

import numpy as np
from pydantic import Field

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import WidthCriterion, WidthMeasured


class WidthRandomOptions(CriterionOptions):
    """A unit's score is its place in a permutation drawn for its block: the control that every criterion must beat."""

    seed: int = Field(0, ge=0)
    """Draws the orders."""


def random_scores(measured: WidthMeasured) -> tuple[np.ndarray, np.ndarray]:
    """Scores of groups and channels."""
    generator, blocks = np.random.default_rng(measured.options.seed), len(measured.values)
    groups, channels = (
        np.stack([generator.permutation(number) for _ in range(blocks)]).astype(float)
        for number in (measured.groups, measured.channels)
    )
    return groups, channels


CRITERION = WidthCriterion(options=WidthRandomOptions, measured=None, reads_text=False, reduce=random_scores)
