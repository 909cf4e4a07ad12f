"""Random: remove in a drawn order. The control that every criterion must beat."""

import numpy as np

from shortened_llm.scoring.criterion import CriterionScores


def random_scores(num_blocks: int, seed: int) -> CriterionScores:
    """A block's score is its place in a permutation drawn with `seed`."""
    places = np.random.default_rng(seed).permutation(num_blocks)
    return CriterionScores(scores=tuple(float(place) for place in places))
