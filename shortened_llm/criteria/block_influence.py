"""Block influence: how far a block turns its input."""

import numpy as np

from shortened_llm.criteria.criterion import COSINE, Criterion, CriterionOptions, CriterionScores, mean_scores


class BlockInfluenceOptions(CriterionOptions):
    """1 - mean over tokens of the cosine between the hidden states before and after the block, or the sub-layer, whose
    attention comes first. Source: ShortGPT, arXiv 2403.03853, section 2.2."""


def block_influence_scores(cosines: np.ndarray) -> CriterionScores:
    """1 - the mean cosine. All sequences are of one length, so a mean of their means is the mean over tokens.

    Args:
        cosines: mean of each sequence, [sequences, blocks].
    """
    return mean_scores(1 - cosines)


CRITERION = Criterion(
    options=BlockInfluenceOptions,
    measured=COSINE,
    reads_text=True,
    units=("block", "sublayer"),
    reduce=lambda measured: block_influence_scores(measured.values),
)
