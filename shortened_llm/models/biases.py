"""Which layers of a block have a bias, or get one by a field of the configuration."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model

BIAS_FIELDS = ("attention_bias", "mlp_bias")
"""Each gives all projections of attention, or of the MLP, a bias in the families that read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Biases:
    """Biases of some layers."""

    layers: frozenset[str]
    """Those of the layers that have one when the fields are true."""
    fields: tuple[str, ...]
    """Fields of the configuration that are false so far."""
    added: Mapping[str, torch.Size]
    """Parameters that a block then has besides those it has now, by their names in it."""


def layers_without_bias(config: PretrainedConfig, layers: Collection[str]) -> tuple[str, ...]:
    """Those that have no bias and get none by a field."""
    return tuple(sorted(set(layers) - biases_of(config, layers).layers))


def biases_of(config: PretrainedConfig, layers: Collection[str]) -> Biases:
    """What is needed for as many of the layers, by their names in a block, as the family allows to have a bias."""
    now = _parameters(config)
    found, fields = {layer for layer in layers if f"{layer}.bias" in now}, []
    changed = copy.deepcopy(config)
    for field in BIAS_FIELDS:
        if getattr(config, field, None) is False:
            one = copy.deepcopy(config)
            setattr(one, field, True)
            if gained := {layer for layer in layers if f"{layer}.bias" in _parameters(one)} - found:
                found |= gained
                fields.append(field)
                setattr(changed, field, True)
    added = {name: shape for name, shape in _parameters(changed).items() if name not in now}
    return Biases(layers=frozenset(found), fields=tuple(fields), added=added)


def _parameters(config: PretrainedConfig) -> dict[str, torch.Size]:
    """Shapes of a block's parameters, by their names in it. Blocks are alike where their widths are known."""
    return {name: weight.shape for name, weight in find_blocks(empty_model(config))[0].named_parameters()}
