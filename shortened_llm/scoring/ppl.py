"""PPL: the perplexity of the network without the block."""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from shortened_llm.errors import NonFiniteLossError
from shortened_llm.models.walk import BlockWalk
from shortened_llm.scoring.criterion import CriterionScores, Progress


def score_ppl(
    model: PreTrainedModel, tokens: torch.Tensor, *, batch_size: int, on_progress: Progress
) -> CriterionScores:
    """PPL_m = exp(mean token negative log-likelihood of the network without block m), one-shot.

    Source: arXiv 2402.02834, section 2.2. One walk over the blocks carries the dense hidden states and those of every
    candidate already removed. Cost, for N blocks: N (N + 1) / 2 block applications and N + 1 heads, and memory for
    N + 1 hidden states of `batch_size` sequences.

    The standard error of a score is that of its paired difference from the dense model, over sequences (the tokens of
    one sequence are correlated), carried to perplexity by the derivative of exp.

    Args:
        tokens: calibration sequences, [sequences, length].

    Raises:
        NonFiniteLossError: naming the block and the sequence.
    """
    tokens = tokens.to(model.device)
    walk = BlockWalk.of(model, tokens)
    batches = tokens.split(batch_size)
    steps = 2 * len(walk.blocks) + 1  # blocks, then heads
    parts = []
    for index, batch in enumerate(batches):

        def on_step(done: int, before: int = index * steps) -> None:
            on_progress(before + done, steps * len(batches))

        parts.append(_walk_batch(walk, batch, on_step))
    nll = torch.cat(parts, dim=1) / (tokens.shape[1] - 1)  # [candidates, sequences]
    _check_finite(nll)
    dense, removed = nll[-1], nll[:-1]
    scores = removed.mean(dim=1).exp()
    errors = None
    if len(tokens) > 1:
        errors = tuple((scores * (removed - dense).std(dim=1) / math.sqrt(len(tokens))).tolist())
    return CriterionScores(
        scores=tuple(scores.tolist()), standard_errors=errors, dense_perplexity=dense.mean().exp().item()
    )


@torch.inference_mode()
def _walk_batch(walk: BlockWalk, tokens: torch.Tensor, on_step: Callable[[int], None]) -> torch.Tensor:
    """Summed loss in nats, fp64, [blocks + 1, sequences]: without each block, and last of the dense model."""
    dense = walk.embed(tokens)
    candidates = dense[None][:0]  # [blocks removed so far, sequences, length, hidden]
    for block in range(len(walk.blocks)):
        after = walk.apply(block, torch.cat([candidates, dense[None]]).flatten(0, 1)).unflatten(0, (-1, len(tokens)))
        candidates = torch.cat([after[:-1], dense[None]])
        dense = after[-1]
        on_step(block + 1)
    losses = []
    for state in torch.cat([candidates, dense[None]]):
        losses.append(walk.sequence_nll(tokens, state))
        on_step(len(walk.blocks) + len(losses))
    return torch.stack(losses).double().cpu()


def _check_finite(nll: torch.Tensor) -> None:
    bad = (~nll.isfinite()).nonzero()
    if len(bad):
        candidate, sequence = bad[0].tolist()
        what = "the dense model" if candidate == len(nll) - 1 else f"the model without block {candidate}"
        raise NonFiniteLossError(f"{what} has loss {nll[candidate, sequence]} on calibration sequence {sequence}")
