"""The weights of one linear layer that become zero, by each criterion, and what becomes of the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from shortened_llm.models.moments import Moments
from shortened_llm.pruning.weight.mrp import mrp
from shortened_llm.pruning.weight.pattern import Pattern
from shortened_llm.pruning.weight.sparsegpt import sparsegpt


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a step is given of a layer."""

    weight: torch.Tensor
    """[outputs, inputs], fp64."""
    moments: Moments | None
    """What its inputs are like; None where no text is read."""
    num_sequences: int
    pattern: Pattern
    is_mask_alone: bool = False
    """Whether what the criterion makes of the weights that stay is not used."""

    @property
    def inputs(self) -> Moments:
        """What its inputs are like, where text is read."""
        assert self.moments is not None
        return self.moments

    @property
    def hessian(self) -> torch.Tensor:
        """2 X Xᵀ, of the mean sequence, [inputs, inputs]."""
        gram = self.inputs.gram(torch.zeros_like(self.inputs.mean))
        return gram * (2 * self.inputs.count / self.num_sequences)


def saliency(weight: torch.Tensor, inputs: Moments) -> torch.Tensor:
    """|weight| x root of the mean square of its input, [outputs, inputs]."""
    return weight.abs() * inputs.squares.sqrt()


def by_magnitude(layer: Layer, _: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask, True where a weight stays."""
    kept = layer.pattern.lowest(layer.weight.abs())
    return layer.weight * kept, kept


def by_wanda(layer: Layer, _: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask."""
    kept = layer.pattern.lowest_in_rows(saliency(layer.weight, layer.inputs))
    return layer.weight * kept, kept


def by_sparsegpt(layer: Layer, options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask."""
    return sparsegpt(layer.weight, layer.hessian, layer.pattern, damping=options.damping, block_size=options.block_size)


def by_mrp(layer: Layer, options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask."""
    update = None if layer.is_mask_alone else options.update
    return mrp(layer.weight, layer.hessian, layer.pattern, mask=options.mask, update=update, damping=options.damping)


MASKERS: dict[str, Callable[[Layer, Any], tuple[torch.Tensor, torch.Tensor]]] = {
    "magnitude": by_magnitude,
    "wanda": by_wanda,
    "sparsegpt": by_sparsegpt,
    "mrp": by_mrp,
}
"""By the names of `WEIGHT_CRITERIA`; given a layer and the criterion's options."""
