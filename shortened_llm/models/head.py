"""The one loss of the package: hidden states in chunks, through the head, to fp32 cross-entropy.

No tensor of [tokens, vocabulary] exists beyond one chunk, neither forward nor backward.
"""

import types

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

IGNORE = -100
CHUNK_TOKENS = 512


def sequence_nll(model: PreTrainedModel, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of each sequence, in nats.

    Args:
        model: a causal language model.
        input_ids: tokens, [batch, seq].
        labels: the token that each position should predict, [batch, seq]; -100 where nothing is asked.

    Returns:
        fp32 sums, [batch]; differentiable.
    """
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    step = max(1, CHUNK_TOKENS // len(input_ids))
    sums = [
        checkpoint(_chunk_nll, model, part, asked, use_reentrant=False)
        for part, asked in zip(hidden.split(step, dim=1), labels.split(step, dim=1), strict=True)
    ]
    return torch.stack(sums).sum(dim=0)


def _chunk_nll(model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = head_logits(model, hidden)
    return (
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
        .view(labels.shape)
        .sum(dim=1)
    )


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """fp32 logits [..., vocab] of final hidden states [..., hidden], with the family's scale and soft-cap."""
    return finished_logits(model.config, model.get_output_embeddings()(hidden))


def finished_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """What the family makes of the head's product, in fp32; elementwise, so a part of the vocabulary can be given."""
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scaling
    logits = logits.float()
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def next_token_labels(input_ids: torch.Tensor) -> torch.Tensor:
    """Labels [batch, seq] of tokens [batch, seq]: each position predicts the next token, the last one nothing."""
    labels = torch.full_like(input_ids, IGNORE)
    labels[:, :-1] = input_ids[:, 1:]
    return labels


def attach_sequence_nll(model: PreTrainedModel) -> None:
    """Make `sequence_nll` a method of the model, so that FSDP can wrap it like a forward."""
    model.sequence_nll = types.MethodType(sequence_nll, model)
