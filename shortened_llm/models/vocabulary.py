"""The loss of many hidden states with the head read once, a chunk of the vocabulary at a time.

The counterpart of `head.py` for a head that is not in memory: the same logits, but the loss is gathered over chunks of
the vocabulary, as running log-sum-exps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from shortened_llm.models.head import finished_logits
from shortened_llm.models.stream import StreamedModel

# A tile of logits, [tokens, vocabulary]: large enough for the matmul, small enough for the processor's cache.
TILE_TOKENS = {"cpu": 256, "cuda": 8192}
TILE_VOCABULARY = {"cpu": 2048, "cuda": 16_384}


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyLosses:
    """Sums over the predictions of each sequence, fp64."""

    nll: torch.Tensor
    """Negative log-likelihood in nats, [models, sequences]."""
    kl: torch.Tensor | None
    """KL divergence from the first model's prediction in nats, [models, sequences]: KL(first || model)."""


def vocabulary_losses(
    streamed: StreamedModel,
    states: torch.Tensor,
    tokens: torch.Tensor,
    *,
    with_kl: bool,
    on_share: Callable[[float], None] = lambda share: None,
) -> VocabularyLosses:
    """Next-token losses of several models that share a head.

    Args:
        states: what the head reads, [models, sequences, length, hidden].
        tokens: token ids, [sequences, length], in CPU memory.
        with_kl: also compare each model's predictions with those of the first.
        on_share: called with the share of the vocabulary that is done.
    """
    models, sequences, length, hidden_size = states.shape
    # The last position predicts nothing; it is carried along, since leaving it out would copy the states.
    positions = sequences * length
    flat = states.view(models, positions, hidden_size)
    targets = tokens.roll(-1, dims=1).reshape(-1).to(states.device)
    lse = torch.full((models, positions), float("-inf"), device=states.device)
    gold = torch.zeros((models, positions), device=states.device)
    weighted = torch.zeros((models, positions), device=states.device)
    """Sum over the vocabulary of exp(first's logit - its log-sum-exp so far) * (first's logit - the model's)."""
    for start, weight, bias in _head_chunks(streamed):
        local = targets - start
        inside = (local >= 0) & (local < len(weight))
        index = local.clamp(0, len(weight) - 1)[:, None]
        for begin in range(0, positions, TILE_TOKENS[states.device.type]):
            span = slice(begin, begin + TILE_TOKENS[states.device.type])
            first: torch.Tensor | None = None
            shares: torch.Tensor | None = None
            for model in range(models):
                logits = finished_logits(streamed.model.config, F.linear(flat[model, span], weight, bias))
                before = lse[model, span].clone()
                of_target = logits.gather(1, index[span])[:, 0]
                lse[model, span] = torch.logaddexp(before, _log_sum_exp(logits, index[span, 0], of_target))
                gold[model, span] += torch.where(inside[span], of_target, 0)
                if not with_kl:
                    continue
                if first is None or shares is None:
                    first, shares = logits, torch.exp(logits - lse[0, span, None])
                    weighted[:, span] *= torch.exp(before - lse[0, span])
                else:
                    weighted[model, span] += torch.sub(first, logits, out=logits).mul_(shares).sum(dim=-1)
        on_share((start + len(weight)) / streamed.vocab_size)
    nll = lse.double() - gold
    kl = weighted.double() - lse[0].double() + lse if with_kl else None
    return VocabularyLosses(
        nll=nll.view(models, sequences, -1)[..., :-1].sum(dim=-1).cpu(),
        kl=None if kl is None else kl.view(models, sequences, -1)[..., :-1].sum(dim=-1).cpu(),
    )


def loss_gradient(
    streamed: StreamedModel, states: torch.Tensor, tokens: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of each sequence, and the gradient of `scale` times their sum.

    Args:
        states: what the head reads, [sequences, length, hidden].
        tokens: token ids, [sequences, length], in CPU memory.

    Returns:
        Negative log-likelihoods in nats, fp64 [sequences], and the gradient with respect to `states`, of their shape.
    """
    sequences, length, hidden_size = states.shape
    flat = states.view(-1, hidden_size)
    targets = tokens.roll(-1, dims=1).reshape(-1).to(states.device)
    lse = torch.full((len(flat),), float("-inf"), device=states.device)
    gold = torch.zeros(len(flat), device=states.device)
    # The head is read twice: the softmax of a chunk needs the sum over all of them.
    gradient = torch.zeros(flat.shape, dtype=torch.float32, device=states.device)
    for backward in (False, True):
        for start, weight, bias in _head_chunks(streamed):
            local = targets - start
            inside = ((local >= 0) & (local < len(weight))).float()
            index = local.clamp(0, len(weight) - 1)[:, None]
            for begin in range(0, len(flat), TILE_TOKENS[states.device.type]):
                span = slice(begin, begin + TILE_TOKENS[states.device.type])
                product = F.linear(flat[span], weight, bias)
                if not backward:
                    logits = finished_logits(streamed.model.config, product)
                    of_target = logits.gather(1, index[span])[:, 0]
                    lse[span] = torch.logaddexp(lse[span], _log_sum_exp(logits, index[span, 0], of_target))
                    gold[span] += inside[span] * of_target
                    continue
                with torch.enable_grad():
                    product.requires_grad_(True)
                    logits = finished_logits(streamed.model.config, product)
                of_logits = torch.exp(logits.detach() - lse[span, None])
                of_logits.scatter_add_(1, index[span], -inside[span, None])
                (of_product,) = torch.autograd.grad(logits, product, of_logits)
                gradient[span] += (of_product @ weight).float()
    gradient = gradient.mul_(scale).view(sequences, length, hidden_size)
    gradient[:, -1] = 0  # the last position predicts nothing
    nll = (lse.double() - gold).view(sequences, -1)[:, :-1].sum(dim=-1)
    return nll.cpu(), gradient.to(states.dtype)


def _log_sum_exp(logits: torch.Tensor, targets: torch.Tensor, of_targets: torch.Tensor) -> torch.Tensor:
    """Over the last dimension. The fused cross-entropy, less its targets, takes half the time of torch.logsumexp."""
    return F.cross_entropy(logits, targets, reduction="none") + of_targets


def _head_chunks(streamed: StreamedModel) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """Yield (first token id, weight [chunk, hidden], bias [chunk]) in the compute dtype."""
    head = streamed.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    size = TILE_VOCABULARY[streamed.device.type]
    for start in range(0, len(head.weight), size):
        rows = head.weight.detach()[start : start + size]
        part = None if bias is None else bias.detach()[start : start + size].to(streamed.device, streamed.dtype)
        yield start, rows.to(streamed.device, streamed.dtype), part
