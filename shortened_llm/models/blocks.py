"""Find the parts of a live causal language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.errors import BadInputError


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order.

    Raises:
        BadInputError: no list of the model has as many entries as the config says.
    """
    wanted = model.config.num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    if not lists:
        raise BadInputError(f"model.path: found no list of {wanted} blocks in {type(model).__name__}")
    # modules() walks from the outside in: lists inside blocks, such as experts, come later.
    return lists[0]


class _Bypass(nn.Module):
    """A block that hands its input on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Models read attributes of their blocks, such as `attention_type`.
        object.__setattr__(self, "_block", block)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden_states


@contextmanager
def bypassed(model: PreTrainedModel, block: int) -> Iterator[None]:
    """The model without one block, for the length of the context."""
    blocks = find_blocks(model)
    original = blocks[block]
    blocks[block] = _Bypass(original)
    try:
        yield
    finally:
        blocks[block] = original
