"""The weights of one linear layer that become zero, by each criterion, and what becomes of the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from shortened_llm.models.moments import Moments
from shortened_llm.pruning.weight.pattern import Pattern
from shortened_llm.pruning.weight.sparsegpt import sparsegpt


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a criterion is given of a layer."""

    weight: torch.Tensor
    """[outputs, inputs], fp64."""
    moments: Moments | None
    """What its inputs are like; None for a criterion that reads no text."""
    num_sequences: int
    pattern: Pattern
    options: Any
    """The criterion's own."""

    @property
    def hessian(self) -> torch.Tensor:
        """2 X Xᵀ, of the mean sequence, [inputs, inputs]."""
        assert self.moments is not None
        gram = self.moments.gram(torch.zeros_like(self.moments.mean))
        return gram * (2 * self.moments.count / self.num_sequences)


def magnitude(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask, True where a weight stays."""
    kept = layer.pattern.lowest(layer.weight.abs())
    return layer.weight * kept, kept


def wanda(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask."""
    assert layer.moments is not None
    kept = layer.pattern.lowest_in_rows(layer.weight.abs() * layer.moments.squares.sqrt())
    return layer.weight * kept, kept


def by_sparsegpt(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask."""
    options = layer.options
    return sparsegpt(layer.weight, layer.hessian, layer.pattern, damping=options.damping, block_size=options.block_size)


MASKERS: dict[str, Callable[[Layer], tuple[torch.Tensor, torch.Tensor]]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": by_sparsegpt,
}
"""By the names of `WEIGHT_CRITERIA`."""
