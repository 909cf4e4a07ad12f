"""A model in which some blocks pass on what they get: what a model without them must equal."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.models.blocks import find_blocks

PASSED_ON = ("prev_", "state")
"""Beginnings of the names of what goes from block to block beside hidden states, such as the choice of an indexer."""


class Passing(nn.Module):
    """In place of a block: gives what it gets, in the form of the block's output, and has the block's attributes."""

    def __init__(self, block: nn.Module, num_outputs: int) -> None:
        """`num_outputs` is 0 where the block's output is one tensor and no tuple."""
        super().__init__()
        object.__setattr__(self, "_block", block)  # not as a submodule
        self._num_outputs = num_outputs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        """Hidden states alone, or first of a tuple."""
        if not self._num_outputs:
            return hidden_states
        others = [*args, *(value for name, value in kwargs.items() if name.startswith(PASSED_ON))]
        return (hidden_states, *others, *[None] * self._num_outputs)[: self._num_outputs]


@contextlib.contextmanager
def bypassing(model: PreTrainedModel, removed: Collection[int], tokens: torch.Tensor) -> Iterator[None]:
    """Let the blocks `removed` pass on what they get, while the context lasts.

    Args:
        tokens: [batch, seq], of a forward pass that tells the form of a block's output.
    """
    blocks, num_outputs = find_blocks(model), []

    def count(module: nn.Module, inputs: object, output: object) -> None:
        num_outputs.append(len(output) if isinstance(output, (tuple, list)) else 0)

    handle = blocks[min(removed)].register_forward_hook(count)
    model(input_ids=tokens, use_cache=False)
    handle.remove()
    originals = {index: blocks[index] for index in removed}
    try:
        for index, block in originals.items():
            blocks[index] = Passing(block, num_outputs[0])
        yield
    finally:
        for index, block in originals.items():
            blocks[index] = block
