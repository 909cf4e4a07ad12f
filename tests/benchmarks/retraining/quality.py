"""Perplexity of a model in memory."""

import math

import torch
from transformers import PreTrainedModel

from shortened_llm.models.head import next_token_labels, sequence_nll


@torch.inference_mode()
def perplexities(model: PreTrainedModel, texts: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each text's segments, [segments, length], each read by itself, in bfloat16."""
    model.to(torch.bfloat16).eval()
    found = {}
    for name, segments in texts.items():
        nats = sum(sequence_nll(model, part, next_token_labels(part)).sum().item() for part in segments.split(4))
        found[name] = math.exp(nats / (segments.numel() - len(segments)))
    return found
