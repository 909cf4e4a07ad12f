"""Arithmetic of a forward pass."""

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.toy import CHOSEN_EXPERTS, EXPERTS


def forward_flops(model: PreTrainedModel) -> float:
    """Floating-point operations of a forward pass for each token: 2 for each weight that it is multiplied with.

    Those are the matrices of the blocks and the head, of experts the active ones; looking up embeddings costs nothing.
    Attention to the past is left out: it grows with the length.
    """
    weights = (weight for block in find_blocks(model) for weight in block.parameters() if weight.dim() >= 2)
    multiplied = sum(weight.numel() * active_share(model.config, weight) for weight in weights)
    return 2.0 * (multiplied + model.get_output_embeddings().weight.numel())


def active_share(config: PretrainedConfig, weight: torch.Tensor) -> float:
    """Share of a weight that a token meets; fused experts are the weights with three dimensions."""
    experts, chosen = (
        next((value for name in names if (value := getattr(config, name, None))), None)
        for names in (EXPERTS, CHOSEN_EXPERTS)
    )
    if isinstance(chosen, (list, tuple)):  # a number for each block
        chosen = sum(chosen) / len(chosen)
    return chosen / experts if weight.dim() == 3 and experts and chosen else 1.0
