"""The linear layers of a block, whose weights may go one by one."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from shortened_llm.errors import BadInputError


def linear_layers(block: nn.Module) -> dict[str, nn.Module]:
    """By their names in the block.

    Raises:
        BadInputError: the block has matrices outside of them, such as experts that are stacked.
    """
    found = {name: module for name, module in block.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    known = {f"{name}.weight" for name in found}
    if others := [name for name, weight in block.named_parameters() if weight.dim() > 1 and name not in known]:
        raise BadInputError(
            f"pruning.unit: is 'weight', but blocks of {type(block).__name__} have matrices that are no linear layers "
            f"({', '.join(others[:3])}); use unit: block"
        )
    return found


def as_matrix(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The weight of a linear layer as [outputs, inputs]; or such a matrix as its weight."""
    return weight.T if isinstance(layer, Conv1D) else weight


def linear_inputs(block: nn.Module) -> dict[str, int]:
    """Numbers of inputs of a block's linear layers; raises as `linear_layers`."""
    return {
        name: as_matrix(layer, layer.get_parameter("weight")).shape[1] for name, layer in linear_layers(block).items()
    }


def linear_size(block: nn.Module) -> int:
    """Weights (count) of a block's linear layers; raises as `linear_layers`."""
    return sum(layer.get_parameter("weight").numel() for layer in linear_layers(block).values())


def linear_sizes(blocks: Iterable[nn.Module]) -> tuple[int, ...] | None:
    """Weights (count) of each block's linear layers; None where these do not hold all of its matrices."""
    try:
        return tuple(map(linear_size, blocks))
    except BadInputError:
        return None
