"""Random: remove in a drawn order. The control that every criterion must beat."""

import numpy as np
from pydantic import Field

from shortened_llm.criteria.criterion import Criterion, CriterionOptions, CriterionScores


class RandomOptions(CriterionOptions):
    """A block's score is its place in a drawn permutation: the control that every criterion must beat."""

    seed: int = Field(0, ge=0)
    """Draws the order."""


def random_scores(num_blocks: int, seed: int) -> CriterionScores:
    """The place of each block in a permutation drawn with `seed`."""
    places = np.random.default_rng(seed).permutation(num_blocks)
    return CriterionScores(scores=tuple(float(place) for place in places))


CRITERION = Criterion(
    options=RandomOptions,
    measured=None,
    reads_text=False,
    units=("block", "sublayer"),
    reduce=lambda measured: random_scores(len(measured.values), measured.options.seed),
)
