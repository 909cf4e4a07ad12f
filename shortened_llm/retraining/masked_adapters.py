"""Adapters of a model with single weights pruned: what they add to a weight that is zero counts for nothing."""

from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shortened_llm.retraining.adapters import ADAPTER, adapted_layers


def mask_adapters(model: nn.Module) -> None:
    """Let every adapted layer compute (W + M ⊙ alpha / rank x B A) x, where M is 0 where W is, and 1 elsewhere.

    So the model is trained as it is merged. The product, of the size of W, is formed in each pass, and again backward.
    Source: SparsePEFT of SQFT, arXiv 2410.03750, section 3.2.
    """
    for layer in adapted_layers(model).values():
        layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    output = layer.base_layer(inputs)
    if layer.disable_adapters:
        return output
    dropped = layer.lora_dropout[ADAPTER](inputs)
    # Kept for the backward pass, the products of all layers would take the memory of another model.
    added = checkpoint(partial(_added, layer), dropped, use_reentrant=False, preserve_rng_state=False)
    return output + added.to(output.dtype)


def _added(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What the adapter adds to the output."""
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    weight, product = layer.base_layer.weight, layer.scaling[ADAPTER] * (up @ down)
    kept = (weight.T if layer.fan_in_fan_out else weight) != 0
    return F.linear(inputs.to(product.dtype), product * kept)
