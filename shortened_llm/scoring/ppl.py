"""PPL: the perplexity of the network without the block."""

import math

import torch
from transformers import PreTrainedModel

from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.blocks import bypassed, find_blocks
from shortened_llm.models.head import next_token_labels, sequence_nll
from shortened_llm.scoring.criterion import CriterionScores, Progress


def score_ppl(
    model: PreTrainedModel, tokens: torch.Tensor, *, batch_size: int, on_progress: Progress
) -> CriterionScores:
    """PPL_m = exp(mean token negative log-likelihood of the network without block m), one-shot.

    Source: arXiv 2402.02834, section 2.2. Cost: (blocks + 1) forward passes over the calibration set.

    The standard error of a score is that of its paired difference from the dense model, over sequences (the tokens of
    one sequence are correlated), carried to perplexity by the derivative of exp.

    Args:
        tokens: calibration sequences, [sequences, length].

    Raises:
        NonFiniteLossError: naming the block and the sequence.
    """
    num_blocks = len(find_blocks(model))
    dense = _mean_nll_per_sequence(model, tokens, batch_size, "the dense model")
    on_progress(1, num_blocks + 1)
    means, errors = [], []
    for block in range(num_blocks):
        with bypassed(model, block):
            nll = _mean_nll_per_sequence(model, tokens, batch_size, f"the model without block {block}")
        perplexity = math.exp(nll.mean().item())
        means.append(perplexity)
        if len(tokens) > 1:
            errors.append(perplexity * (nll - dense).std().item() / math.sqrt(len(tokens)))
        on_progress(block + 2, num_blocks + 1)
    return CriterionScores(
        scores=tuple(means),
        standard_errors=tuple(errors) if errors else None,
        dense_perplexity=math.exp(dense.mean().item()),
    )


@torch.inference_mode()
def _mean_nll_per_sequence(model: PreTrainedModel, tokens: torch.Tensor, batch_size: int, what: str) -> torch.Tensor:
    """Nats per prediction of each sequence, fp64, [sequences]."""
    sums = [sequence_nll(model, batch, next_token_labels(batch)) for batch in tokens.to(model.device).split(batch_size)]
    means = torch.cat(sums).double().cpu() / (tokens.shape[1] - 1)
    if not means.isfinite().all():
        raise NonFiniteLossError(f"{what} has loss {means[~means.isfinite()][0]} on calibration sequence "
                                 f"{int((~means.isfinite()).nonzero()[0])}")  # fmt: skip
    return means
