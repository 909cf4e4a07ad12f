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
    flat = states.view(models, sequences * length, hidden_size)
    sums = _sums_over_vocabulary(streamed, flat, _targets(tokens, states.device), with_kl=with_kl, on_share=on_share)
    return VocabularyLosses(
        nll=_by_sequence(sums.nll, sequences), kl=_by_sequence(sums.kl, sequences) if with_kl else None
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
    targets = _targets(tokens, states.device)
    # The head is read twice: the softmax of a chunk needs the sum over all of them.
    sums = _sums_over_vocabulary(streamed, flat[None], targets, with_kl=False)
    grad_states = torch.zeros(flat.shape, dtype=torch.float32, device=states.device)
    for chunk in _head_chunks(streamed):
        inside, index = chunk.find(targets)
        for span in _spans(flat):
            product = F.linear(flat[span], chunk.weight, chunk.bias)
            with torch.enable_grad():
                product.requires_grad_(True)
                logits = finished_logits(streamed.model.config, product)
            grad_logits = torch.exp(logits.detach() - sums.lse[0, span, None])
            grad_logits.scatter_add_(1, index[span], -inside[span, None].float())
            (grad_product,) = torch.autograd.grad(logits, product, grad_logits)
            grad_states[span] += (grad_product @ chunk.weight).float()
    grad_states = grad_states.mul_(scale).view(sequences, length, hidden_size)
    grad_states[:, -1] = 0  # the last position predicts nothing
    return _by_sequence(sums.nll, sequences)[0], grad_states.to(states.dtype)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Per model and position, [models, positions], fp32."""

    lse: torch.Tensor
    """Log-sum-exp of the logits."""
    gold: torch.Tensor
    """The target's logit."""
    weighted: torch.Tensor
    """Sum over the vocabulary of (the first model's probability) * (its logit - the model's)."""

    @property
    def nll(self) -> torch.Tensor:
        return self.lse.double() - self.gold

    @property
    def kl(self) -> torch.Tensor:
        return self.weighted.double() - self.lse[0].double() + self.lse


def _sums_over_vocabulary(
    streamed: StreamedModel,
    flat: torch.Tensor,
    targets: torch.Tensor,
    *,
    with_kl: bool,
    on_share: Callable[[float], None] = lambda share: None,
) -> _Sums:
    """Gather the sums of states [models, positions, hidden], one chunk of the head after the other.

    Args:
        targets: token ids, [positions], on the states' device.
    """
    lse = torch.full(flat.shape[:2], float("-inf"), device=flat.device)
    gold, weighted = torch.zeros_like(lse), torch.zeros_like(lse)
    for chunk in _head_chunks(streamed):
        inside, index = chunk.find(targets)
        for span in _spans(flat[0]):
            first: torch.Tensor | None = None
            shares: torch.Tensor | None = None
            for model in range(len(flat)):
                product = F.linear(flat[model, span], chunk.weight, chunk.bias)
                logits = finished_logits(streamed.model.config, product)
                before = lse[model, span].clone()
                of_target = logits.gather(1, index[span])[:, 0]
                lse[model, span] = torch.logaddexp(before, _log_sum_exp(logits, index[span, 0], of_target))
                gold[model, span] += torch.where(inside[span], of_target, 0)
                if not with_kl:
                    continue
                if first is None or shares is None:
                    # So far the shares were of the sum over earlier chunks alone.
                    first, shares = logits, torch.exp(logits - lse[0, span, None])
                    weighted[:, span] *= torch.exp(before - lse[0, span])
                else:
                    weighted[model, span] += torch.sub(first, logits, out=logits).mul_(shares).sum(dim=-1)
        on_share((chunk.start + len(chunk.weight)) / streamed.vocab_size)
    return _Sums(lse=lse, gold=gold, weighted=weighted)


def _targets(tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What each position of tokens [sequences, length] should predict, [positions].

    The last position of a sequence predicts nothing; it is carried along, since leaving it out would copy the states.
    """
    return tokens.roll(-1, dims=1).reshape(-1).to(device)


def _by_sequence(values: torch.Tensor, sequences: int) -> torch.Tensor:
    """Sums over each sequence's predictions, [models, sequences], of values [models, positions]; in CPU memory."""
    return values.view(len(values), sequences, -1)[..., :-1].sum(dim=-1).cpu()


def _spans(positions: torch.Tensor) -> Iterator[slice]:
    """The positions, [positions, ...], in tiles."""
    size = TILE_TOKENS[positions.device.type]
    for start in range(0, len(positions), size):
        yield slice(start, start + size)


def _log_sum_exp(logits: torch.Tensor, targets: torch.Tensor, of_targets: torch.Tensor) -> torch.Tensor:
    """Over the last dimension. The fused cross-entropy, less its targets, takes half the time of torch.logsumexp."""
    return F.cross_entropy(logits, targets, reduction="none") + of_targets


@dataclass(frozen=True, slots=True)
class _HeadChunk:
    """Part of the vocabulary, in the compute dtype."""

    start: int
    """Its first token id."""
    weight: torch.Tensor
    """[chunk, hidden]."""
    bias: torch.Tensor | None
    """[chunk]."""

    def find(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which targets, [positions], lie in the chunk, and each one's row in it, [positions, 1]; any row if none."""
        local = targets - self.start
        inside = (local >= 0) & (local < len(self.weight))
        return inside, local.clamp(0, len(self.weight) - 1)[:, None]


def _head_chunks(streamed: StreamedModel) -> Iterator[_HeadChunk]:
    """The head, read in chunks."""
    head = streamed.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    size = TILE_VOCABULARY[streamed.device.type]
    for start in range(0, len(head.weight), size):
        rows = head.weight.detach()[start : start + size]
        part = None if bias is None else bias.detach()[start : start + size].to(streamed.device, streamed.dtype)
        yield _HeadChunk(start, rows.to(streamed.device, streamed.dtype), part)
