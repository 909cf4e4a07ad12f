"""KL: how far the predictions move when the block goes."""

import numpy as np

from shortened_llm.scoring.criterion import CriterionScores, floats, standard_errors
from shortened_llm.scoring.one_pass import KL

STATISTIC = KL


def kl_scores(divergences: np.ndarray) -> CriterionScores:
    """Mean over predictions of KL(dense || without the block), in nats.

    Args:
        divergences: mean of each sequence, [sequences, blocks].
    """
    return CriterionScores(
        scores=tuple(divergences.mean(axis=0).tolist()), standard_errors=floats(standard_errors(divergences))
    )
