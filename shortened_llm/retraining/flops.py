"""Arithmetic of a training step: what the model needs, and what a device can do."""

import torch
from transformers import PreTrainedModel

from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.flops import active_share
from shortened_llm.models.gpus import gpu_of


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """FLOP/s of the device in bfloat16; None where it is not known, as on CPU and in other types."""
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    gpu = gpu_of(torch.cuda.get_device_name(device))
    return gpu.peak_flops if gpu else None


def training_flops(model: PreTrainedModel, sequence_length: int) -> float:
    """Floating-point operations per token of forward and backward pass, without recomputation; of a frozen model there
    is only a forward pass.

    2 per weight and token forward, 2 for the gradient of the activations as far back as something is trained, 2 for the
    gradient of each trained weight; attention 4 x length x width per block forward, the causal half not left out (PaLM,
    arXiv 2204.02311, appendix B). Of experts, the active ones.
    """
    blocks = find_blocks(model)
    trained = [any(weight.requires_grad for weight in block.parameters()) for block in blocks]
    first = trained.index(True) if any(trained) else len(blocks)
    if model.get_input_embeddings().weight.requires_grad:  # so do those that are tied to a trained head
        first = 0
    attention = 4.0 * sequence_length * _attention_width(model)
    head = 2.0 * model.get_output_embeddings().weight.numel()
    flops = head * (2 if any(trained) or model.get_output_embeddings().weight.requires_grad else 1)
    flops += head * model.get_output_embeddings().weight.requires_grad
    for index, block in enumerate(blocks):
        reached = index >= first
        flops += attention * (3 if reached else 1)
        for weight in block.parameters():
            if weight.dim() >= 2:
                active = weight.numel() * active_share(model.config, weight)
                flops += 2.0 * active * (1 + reached + weight.requires_grad)
    return flops


def _attention_width(model: PreTrainedModel) -> int:
    config = model.config
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # state spaces have none
        return 0
    return int(heads * (getattr(config, "head_dim", None) or config.hidden_size // heads))
