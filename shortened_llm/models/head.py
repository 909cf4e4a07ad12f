"""The one loss of the package: hidden states in chunks, through the head, to fp32 sums.

No tensor of [tokens, vocabulary] exists beyond one chunk, neither forward nor backward: the gradient of a chunk is
taken while its logits are there, so that the head is never computed twice.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_decoder
from shortened_llm.models.families import LOGIT_EXCEPTIONS, LOGIT_RULES
from shortened_llm.models.shards import device_of

IGNORE = -100
CHUNK_TOKENS = 512
MOST_LOGIT_BYTES = 2**30
CHECKED_TOKENS = 8
ROUNDINGS = 16
"""Steps of the compute type, relative to the largest logit, by which two ways of computing one logit may differ."""

ChunkLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits in fp32 [chunk, vocab], labels [chunk]) -> loss of each position, [chunk]; 0 where the label is -100."""


Documents = Mapping[str, Any]
"""What keeps the documents of a sequence apart, where they must be: see `isolation.document_inputs`."""
NO_DOCUMENTS: Documents = {}


def chunk_tokens(device: torch.device, vocabulary: int) -> int:
    """How many positions make a chunk.

    Each chunk reads and writes the whole gradient of the head. So on a GPU chunks are as large as memory lets them be:
    logits of a gibibyte in float32, or of a 64th of a smaller GPU's memory.
    """
    if device.type != "cuda":
        return CHUNK_TOKENS
    most = min(MOST_LOGIT_BYTES, torch.cuda.get_device_properties(device).total_memory // 64)
    return max(1, most // (4 * vocabulary * CHUNK_TOKENS)) * CHUNK_TOKENS


def final_hidden(model: PreTrainedModel, input_ids: torch.Tensor, documents: Documents = NO_DOCUMENTS) -> torch.Tensor:
    """Hidden states after the final norm, [batch, seq, hidden], of tokens [batch, seq]."""
    return find_decoder(model)(input_ids=input_ids, use_cache=False, **documents).last_hidden_state


def sequence_nll(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor, documents: Documents = NO_DOCUMENTS
) -> torch.Tensor:
    """Summed negative log-likelihood of each sequence, in nats: fp32 sums [batch] of `token_nll`."""
    return token_nll(model, input_ids, labels, documents).sum(dim=1)


def token_nll(
    model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor, documents: Documents = NO_DOCUMENTS
) -> torch.Tensor:
    """Negative log-likelihood of each prediction, in nats; for scoring, without gradients.

    Args:
        model: a causal language model.
        input_ids: tokens, [batch, seq].
        labels: the token that each position should predict, [batch, seq]; -100 where nothing is asked.
        documents: keeps the documents of a sequence apart.

    Returns:
        fp32, [batch, seq]; 0 where nothing is asked.
    """
    hidden = final_hidden(model, input_ids, documents).flatten(0, 1)
    size = chunk_tokens(hidden.device, model.config.vocab_size)
    parts = zip(hidden.split(size), labels.flatten().split(size), strict=True)
    losses = []
    for part, asked in parts:
        logits = head_logits(model, part)
        losses.append(nll(logits, asked.to(logits.device)))  # of a model over several GPUs, that of its head
    return torch.cat(losses).view(labels.shape)


def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, in nats: the `ChunkLoss` of training and scoring."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")


def training_loss(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    documents: Documents = NO_DOCUMENTS,
    *,
    chunk_loss: Callable[[slice], ChunkLoss] | None = None,
) -> torch.Tensor:
    """Summed loss over all positions, fp32 scalar, differentiable.

    Args:
        input_ids: tokens, [batch, seq].
        labels: [batch, seq]; -100 where nothing is asked.
        documents: keeps the documents of a sequence apart.
        chunk_loss: from the positions of a chunk, in [batch x seq], to its loss; `nll` unless given.
    """
    hidden = final_hidden(model, input_ids, documents).flatten(0, 1)
    head = model.get_output_embeddings()
    weights = [weight for weight in (head.weight, getattr(head, "bias", None)) if weight is not None]
    total: torch.Tensor = _ChunkedLoss.apply(
        model.config, chunk_loss or (lambda _: nll), labels.flatten(), hidden, *weights
    )
    return total


class _ChunkedLoss(torch.autograd.Function):
    """The sum of a loss over chunks of positions, with its gradients taken in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        config: PreTrainedConfig,
        chunk_loss: Callable[[slice], ChunkLoss],
        labels: torch.Tensor,
        hidden: torch.Tensor,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        needed = ctx.needs_input_grad[3:]
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needed[0] else None
        # One chunk gives its product as it is; several are summed in float32.
        size = chunk_tokens(hidden.device, len(weights[0]))
        several = len(hidden) > size
        grad_weights = [
            torch.zeros_like(weight, dtype=torch.float32) if several and wanted else None
            for weight, wanted in zip(weights, needed[1:], strict=True)
        ]
        for start in range(0, len(hidden), size):
            places = slice(start, start + size)
            inputs = [
                tensor.detach().requires_grad_(wanted)
                for tensor, wanted in zip((hidden[places], *weights), needed, strict=True)
            ]
            with torch.enable_grad():
                logits = finished_logits(config, F.linear(*inputs))
                loss = chunk_loss(places)(logits, labels[places]).sum()
            total += loss.detach()
            wanted_inputs = [tensor for tensor in inputs if tensor.requires_grad]
            gradients = iter(torch.autograd.grad(loss, wanted_inputs) if wanted_inputs else ())
            del logits, loss
            if grad_hidden is not None:
                grad_hidden[places] = next(gradients)
            for index, wanted in enumerate(needed[1:]):
                if wanted:
                    grad_weight, so_far = next(gradients), grad_weights[index]
                    grad_weights[index] = grad_weight if so_far is None else so_far.add_(grad_weight)
        ctx.save_for_backward(
            grad_hidden,
            *[g if g is None else g.to(weight.dtype) for g, weight in zip(grad_weights, weights, strict=True)],
        )
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_total,) = upstream
        # In place: the head's gradient is as large as the head. Nothing asks for it twice.
        scaled = [None if one is None else one.mul_(grad_total.to(one.dtype)) for one in ctx.saved_tensors]
        return None, None, None, *scaled


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """fp32 logits [..., vocab] of final hidden states [..., hidden], with the family's scale and soft-cap."""
    return finished_logits(model.config, model.get_output_embeddings()(hidden))


def finished_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """What the family makes of the head's product, in fp32 (`families.LOGIT_RULES`); elementwise, so a part of the
    vocabulary can be given."""
    caps = []
    for field, usual in LOGIT_RULES:
        operation = LOGIT_EXCEPTIONS.get((config.model_type, field), usual)
        if operation is None or (value := getattr(config, field, None)) is None:
            continue
        if operation == "multiply":
            logits = logits * value
        elif operation == "divide":
            logits = logits / value
        else:
            caps.append(value)
    logits = logits.float()
    for cap in caps:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_head(
    model: PreTrainedModel, hidden_of: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = final_hidden
) -> None:
    """Check that head and final hidden states give the model's own logits. A collective where it is sharded.

    Args:
        hidden_of: gives the final hidden states, [1, seq, hidden], of a model for tokens [1, seq].

    Raises:
        BadInputError: they do not, so that losses of this family would be wrong.
    """
    tokens = torch.arange(CHECKED_TOKENS, device=device_of(model))[None] % model.config.vocab_size
    own = model(input_ids=tokens, use_cache=False).logits
    rebuilt = head_logits(model, hidden_of(model, tokens))
    if own.shape == rebuilt.shape:
        limit = ROUNDINGS * torch.finfo(own.dtype).eps * own.float().abs().max().clamp(min=1)
        difference = (own.float() - rebuilt).abs().max()
        if difference <= limit or not torch.isfinite(difference):  # where a weight is not finite, a loss says more
            return
    raise BadInputError(
        f"model.path: {model.config.model_type} models make their logits of the final hidden states in a way that is "
        "not known here, so that their losses would be wrong; give a model of another family"
    )


def next_token_labels(input_ids: torch.Tensor) -> torch.Tensor:
    """Labels [batch, seq] of tokens [batch, seq]: each position predicts the next token, the last one nothing."""
    labels = torch.full_like(input_ids, IGNORE)
    labels[:, :-1] = input_ids[:, 1:]
    return labels


def attach(model: PreTrainedModel, functions: Sequence[Callable[..., torch.Tensor]]) -> None:
    """Make functions of a model its methods, so that FSDP can wrap them like a forward."""
    for function in functions:
        setattr(model, function.__name__, types.MethodType(function, model))
