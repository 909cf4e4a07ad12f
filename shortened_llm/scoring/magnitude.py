"""Magnitude: the size of the block's weights. No data."""

import math

import numpy as np
import torch

from shortened_llm.criteria.magnitude import MagnitudeOptions
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.logs import StepLog
from shortened_llm.models.stream import StreamedModel
from shortened_llm.scoring.weights import block_score, scored_importances


def measure_magnitude(streamed: StreamedModel, options: MagnitudeOptions) -> np.ndarray:
    """Each block's |W|^p, reduced as in `weights.block_score`; [blocks].

    Cost: no forward pass.
    """
    scores, steps = [], StepLog(streamed.num_blocks)
    for index, block in streamed.read_blocks(range(streamed.num_blocks)):
        scores.append(block_score(scored_importances(block, torch.abs), options))
        if not math.isfinite(scores[-1]):
            raise NonFiniteLossError(f"magnitude: block {index} has score {scores[-1]}")
        steps.add()
    return np.array(scores)
