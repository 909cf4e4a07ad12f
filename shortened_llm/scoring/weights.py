"""From an importance per weight to one score per block; shared by Taylor and magnitude."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from shortened_llm.criteria.taylor import TaylorOptions

REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.max}

ROWS = 256


def scored_weights(block: nn.Module) -> Iterator[nn.Parameter]:
    """The block's weights: every tensor of two or more dimensions and every norm weight; no biases."""
    for module in block.modules():
        yield from _weights(module)


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Those of the module itself."""
    is_norm = "norm" in type(module).__name__.lower()
    for name, parameter in module.named_parameters(recurse=False):
        if not name.endswith("bias") and (parameter.dim() >= 2 or is_norm):
            yield parameter


def scored_importances(block: nn.Module, importance: Callable[[nn.Parameter], torch.Tensor]) -> Iterator[torch.Tensor]:
    """What `importance` makes of each of `scored_weights`, with its inputs as the last dimension; some modules have
    their outputs there."""
    for module in block.modules():
        inputs_first = isinstance(module, Conv1D) or getattr(module, "is_transposed", False)  # stacked experts say so
        for weight in _weights(module):
            found = importance(weight)
            yield found.transpose(-1, -2) if inputs_first and found.dim() >= 2 else found


def block_score(importances: Iterator[torch.Tensor], options: TaylorOptions) -> float:
    """Reduce the importance of each weight, |.|, to the block's score.

    Importances are raised to `power`, summed over the input (last) dimension of tensors that have one, then reduced
    over the outputs, then over the block's tensors.

    Args:
        importances: non-negative, one tensor for each weight.
    """
    per_tensor = []
    for importance in importances:
        powered = importance.pow(options.power) if options.power != 1 else importance
        # By rows: the sum of a whole tensor in float64 would hold a copy of it twice its size.
        rows = powered.flatten(0, -2).split(ROWS) if powered.dim() >= 2 else ()
        outputs = torch.cat([part.sum(dim=-1, dtype=torch.float64) for part in rows]) if rows else powered.double()
        per_tensor.append(REDUCTIONS[options.output_reduction](outputs))
    return REDUCTIONS[options.block_reduction](torch.stack(per_tensor)).item()
