"""Magnitude: the size of the block's weights. No data."""

from transformers import PreTrainedModel

from shortened_llm.config import MagnitudeConfig
from shortened_llm.models.blocks import find_blocks
from shortened_llm.scoring.criterion import CriterionScores, Progress
from shortened_llm.scoring.weights import block_score, scored_weights


def score_magnitude(model: PreTrainedModel, options: MagnitudeConfig, *, on_progress: Progress) -> CriterionScores:
    """Score each block by |W|^p, reduced as in `weights.block_score`.

    Source: arXiv 2402.02834, section 2.2 ("Mag"). Cost: no forward pass.
    """
    blocks = find_blocks(model)
    scores = []
    for index, block in enumerate(blocks):
        scores.append(block_score((weight.detach().abs() for weight in scored_weights(block)), options))
        on_progress(index + 1, len(blocks))
    return CriterionScores(scores=tuple(scores))
