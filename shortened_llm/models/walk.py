"""Walk the blocks of a model by hand: each block with the arguments that the model itself would give it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.head import next_token_labels, sequence_nll

# Sequences per application of a block: enough to fill the machine, few enough for the block's inner activations.
SEQUENCES_PER_CALL = 64


@dataclass(frozen=True, slots=True)
class BlockWalk:
    """The model's blocks and how it calls each of them, for sequences of one length without padding."""

    model: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    arguments: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]
    """Positional and keyword arguments of each block behind the hidden states: masks, position embeddings, ... They
    differ between the blocks of some families, and broadcast over sequences."""

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: torch.Tensor) -> "BlockWalk":
        """Record the calls that the model makes for one of `tokens`, [sequences, length], without running a block."""
        blocks = tuple(find_blocks(model))
        stand_ins = [_StandIn(block) for block in blocks]
        with _replaced(model, stand_ins):
            model.base_model(input_ids=tokens[:1], use_cache=False)
        return cls(model=model, blocks=blocks, arguments=tuple(stand_in.arguments for stand_in in stand_ins))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first block's input, [sequences, length, hidden], for token ids [sequences, length]."""
        stand_ins = [_StandIn(block) for block in self.blocks]
        with _replaced(self.model, stand_ins):
            self.model.base_model(input_ids=tokens, use_cache=False)
        return stand_ins[0].hidden_states

    def apply(self, block: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """Output of one block for hidden states [sequences, length, hidden], of the same shape."""
        positional, keywords = self.arguments[block]
        outputs = []
        for part in hidden_states.split(SEQUENCES_PER_CALL):
            output = self.blocks[block](part, *positional, **keywords)
            outputs.append(output[0] if isinstance(output, tuple) else output)
        return torch.cat(outputs)

    def sequence_nll(self, tokens: torch.Tensor, last_states: torch.Tensor) -> torch.Tensor:
        """Summed loss of each sequence, [sequences], when the last block's output is `last_states`.

        The model's own forward does the rest, so that the final norm, the head and their scales are the family's.
        """
        stand_ins = [_StandIn(block) for block in self.blocks]
        stand_ins[-1].output = last_states
        with _replaced(self.model, stand_ins):
            return sequence_nll(self.model, tokens, next_token_labels(tokens))


class _StandIn(nn.Module):
    """Takes a block's place: keeps its arguments, and returns its input or a given output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Not a submodule: models read attributes of their blocks, such as `attention_type`, and nothing more.
        object.__setattr__(self, "_block", block)
        self.arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
        self.output: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: torch.Tensor, *positional: Any, **keywords: Any) -> torch.Tensor:
        self.hidden_states = hidden_states
        self.arguments = (positional, keywords)
        return hidden_states if self.output is None else self.output


@contextmanager
def _replaced(model: PreTrainedModel, stand_ins: list[_StandIn]) -> Iterator[None]:
    blocks = find_blocks(model)
    originals = list(blocks)
    for index, stand_in in enumerate(stand_ins):
        blocks[index] = stand_in
    try:
        yield
    finally:
        for index, original in enumerate(originals):
            blocks[index] = original
