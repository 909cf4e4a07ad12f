"""Block influence: how far a block turns its input."""

import numpy as np

from shortened_llm.scoring.criterion import CriterionScores, floats, standard_errors
from shortened_llm.scoring.one_pass import COSINE

STATISTIC = COSINE


def block_influence_scores(cosines: np.ndarray) -> CriterionScores:
    """1 - mean over tokens of cos(input, output) of the block.

    Source: ShortGPT, arXiv 2403.03853, section 2.2. All sequences are of one length, so a mean of their means is the
    mean over tokens.

    Args:
        cosines: mean of each sequence, [sequences, blocks].
    """
    return CriterionScores(
        scores=tuple((1 - cosines.mean(axis=0)).tolist()), standard_errors=floats(standard_errors(cosines))
    )
