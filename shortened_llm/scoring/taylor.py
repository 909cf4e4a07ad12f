"""Taylor: first-order estimate of the loss that removing each weight costs."""

import torch
from transformers import PreTrainedModel

from shortened_llm.config import TaylorConfig
from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.head import next_token_labels, sequence_nll
from shortened_llm.scoring.criterion import CriterionScores, Progress
from shortened_llm.scoring.weights import block_score, scored_weights


def score_taylor(
    model: PreTrainedModel, tokens: torch.Tensor, options: TaylorConfig, *, batch_size: int, on_progress: Progress
) -> CriterionScores:
    """Score each block by |W * dL/dW|^p, reduced as in `weights.block_score`.

    L is the mean next-token cross-entropy over the whole calibration set. The products are summed with their signs
    over its batches, which is W * (accumulated gradient); the absolute value comes last.

    Source: arXiv 2402.02834, section 2.2 ("Taylor"). Cost: one forward and one backward pass; memory for the gradients
    of all blocks.

    Args:
        tokens: calibration sequences, [sequences, length].

    Raises:
        NonFiniteLossError: naming the first sequence of the batch or the block.
    """
    blocks = find_blocks(model)
    model.requires_grad_(False)
    for block in blocks:
        for weight in scored_weights(block):
            weight.requires_grad_(True)
    batches = tokens.to(model.device).split(batch_size)
    num_predictions = tokens.shape[0] * (tokens.shape[1] - 1)
    for index, batch in enumerate(batches):
        loss = sequence_nll(model, batch, next_token_labels(batch)).sum() / num_predictions
        if not loss.isfinite():
            raise NonFiniteLossError(f"taylor: loss {loss.item()} on the calibration batch from sequence "
                                     f"{index * batch_size}")  # fmt: skip
        loss.backward()
        on_progress(index + 1, len(batches))
    scores = []
    for index, block in enumerate(blocks):
        products = ((w.detach() * w.grad).abs() for w in scored_weights(block) if w.grad is not None)
        score = block_score(products, options)
        if not torch.isfinite(torch.tensor(score)):
            raise NonFiniteLossError(f"taylor: block {index} has score {score}")
        scores.append(score)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    return CriterionScores(scores=tuple(scores))
