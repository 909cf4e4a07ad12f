"""Walk the blocks of a model by hand: each block with the arguments that the model itself would give it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks, find_decoder
from shortened_llm.models.cpu import available_memory
from shortened_llm.models.stream import StreamedModel

# Tokens per application of a block, times the bytes of a value: enough to fill the machine, few enough for the block's
# inner activations.
TOKEN_BYTES_PER_CALL = {"cpu": 1024, "cuda": 32_768}

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class BlockWalk:
    """How the model calls each of its blocks, for sequences of one length without padding."""

    streamed: StreamedModel
    calls: tuple[Call, ...]
    """Positional and keyword arguments of each block behind the hidden states: masks, position embeddings, ... They
    differ between the blocks of some families, and broadcast over sequences."""
    as_tuple: bool
    """Whether the model expects a tuple of its blocks."""
    sequences_per_call: int

    @classmethod
    def of(cls, streamed: StreamedModel, sequence_length: int) -> "BlockWalk":
        """Record the calls that the model makes, without running a block.

        Raises:
            BadInputError: the architecture does more between its blocks than hand on hidden states, or gives them
                something that depends on the text.
        """
        calls, as_tuple = _recorded_calls(streamed.model, sequence_length, streamed.device, streamed.dtype)
        tokens_per_call = TOKEN_BYTES_PER_CALL[streamed.device.type] // streamed.dtype.itemsize
        per_call = max(1, tokens_per_call // sequence_length)
        return cls(streamed=streamed, calls=calls, as_tuple=as_tuple, sequences_per_call=per_call)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The first block's input, [sequences, length, hidden], for token ids [sequences, length] in CPU memory."""
        embedding = self.streamed.model.get_input_embeddings()
        table, padding = embedding.weight, getattr(embedding, "padding_idx", None)
        used, positions = tokens.unique(return_inverse=True)
        rows = table.detach()[used].to(device=self.streamed.device, dtype=self.streamed.dtype)
        embedding.weight, embedding.padding_idx = nn.Parameter(rows, requires_grad=False), None
        try:
            embedded = embedding(positions.to(self.streamed.device))
        finally:
            embedding.weight, embedding.padding_idx = table, padding
        stand_ins = _stand_ins(self.streamed.model, self.as_tuple)
        with _replaced(self.streamed.model, stand_ins):
            find_decoder(self.streamed.model)(inputs_embeds=embedded, use_cache=False)
        return stand_ins[0].hidden_states

    def new_states(self, models: int, tokens: torch.Tensor) -> torch.Tensor:
        """Room for the states of several models, [models, sequences, length, hidden]; the first is before block 0."""
        states: torch.Tensor | None = None
        done = 0
        for part in tokens.split(self.sequences_per_call):
            embedded = self.embed(part)
            if states is None:
                states = embedded.new_empty((models, len(tokens), *embedded.shape[1:]))
            states[0, done : done + len(part)] = embedded
            done += len(part)
        assert states is not None, "no sequences"
        return states

    def apply(self, block: int, module: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """Output of one block for hidden states [sequences, length, hidden], of the same shape."""
        positional, keywords = self.calls[block]
        output = module(hidden_states, *positional, **keywords)
        return output[0] if isinstance(output, (tuple, list)) else output

    def apply_in_place(self, block: int, module: nn.Module, hidden_states: torch.Tensor) -> None:
        """Replace hidden states [sequences, length, hidden] by the block's output, some sequences at a time."""
        for part in hidden_states.split(self.sequences_per_call):
            part.copy_(self.apply(block, module, part))

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the head reads, of the same shape, when the last block's output is [sequences, length, hidden].

        The model's own forward does it, so that the final norm and whatever surrounds it are the family's.
        """
        stand_ins = _stand_ins(self.streamed.model, self.as_tuple)
        stand_ins[-1].output = hidden_states
        with _replaced(self.streamed.model, stand_ins):
            return find_decoder(self.streamed.model)(inputs_embeds=hidden_states, use_cache=False).last_hidden_state

    def finish_in_place(self, hidden_states: torch.Tensor) -> None:
        """Replace the last block's output [sequences, length, hidden] by what the head reads."""
        for part in hidden_states.split(self.sequences_per_call):
            part.copy_(self.finish(part))


def sequences_in_memory(streamed: StreamedModel, states: int, length: int, memory_gib: float | None) -> int:
    """How many sequences can be walked at once, with `states` hidden states of each."""
    hidden_size = streamed.model.get_input_embeddings().weight.shape[-1]
    bytes_each = states * length * hidden_size * streamed.dtype.itemsize
    if memory_gib is not None:
        free = memory_gib * 2**30
    elif streamed.device.type == "cuda":
        # What torch keeps for itself, such as of an earlier pass, is free as well.
        kept = torch.cuda.memory_reserved(streamed.device) - torch.cuda.memory_allocated(streamed.device)
        free = (torch.cuda.mem_get_info(streamed.device)[0] + kept) / 2
    else:
        free = available_memory() / 2
    return max(1, int(free // bytes_each))


class _StandIn(nn.Module):
    """Takes a block's place: keeps its arguments, and returns its input or a given output."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        # Not a submodule: models read attributes of their blocks, such as `attention_type`, and nothing more.
        object.__setattr__(self, "_block", block)
        self.as_tuple = as_tuple
        self.output: torch.Tensor | None = None
        self.call: Call | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: torch.Tensor, *positional: Any, **keywords: Any) -> Any:
        self.hidden_states = hidden_states
        self.call = (positional, keywords)
        output = hidden_states if self.output is None else self.output
        return (output,) if self.as_tuple else output


def _recorded_calls(
    model: PreTrainedModel, sequence_length: int, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Call, ...], bool]:
    """The call of each block, and whether the model expects a tuple of its blocks."""
    shape = (1, sequence_length, model.get_input_embeddings().weight.shape[-1])
    faults = []
    for as_tuple in (False, True):
        calls, fault = _record(model, torch.zeros(shape, device=device, dtype=dtype), as_tuple)
        if fault is None:
            again, _ = _record(model, torch.ones(shape, device=device, dtype=dtype), as_tuple)
            if (block := _first_difference(calls, again)) is not None:
                fault = f"block {block} is given something that depends on the text"
        if fault is None:
            return calls, as_tuple
        faults.append(fault)
    raise BadInputError(
        f"model.path: {type(model).__name__} cannot be walked block by block: {faults[0]}; the criteria magnitude, "
        "last_n and random do without a walk"
    )


def _stand_ins(model: PreTrainedModel, as_tuple: bool) -> list[_StandIn]:
    return [_StandIn(block, as_tuple) for block in find_blocks(model)]


def _record(model: PreTrainedModel, embedded: torch.Tensor, as_tuple: bool) -> tuple[tuple[Call, ...], str | None]:
    """Each block's call, or what keeps the model from being walked."""
    stand_ins = _stand_ins(model, as_tuple)
    try:
        with _replaced(model, stand_ins), torch.no_grad():
            find_decoder(model)(inputs_embeds=embedded, use_cache=False)
    except Exception as error:  # whatever an unknown architecture does
        return (), f"its forward fails without its blocks ({type(error).__name__}: {error})"
    calls = []
    before: torch.Tensor | None = None
    for index, stand_in in enumerate(stand_ins):
        if stand_in.call is None:
            return (), f"block {index} is never called"
        if before is not None and stand_in.hidden_states is not before:
            return (), f"the input of block {index} is not the output of block {index - 1}"
        before = stand_in.hidden_states
        calls.append(stand_in.call)
    return tuple(calls), None


def _first_difference(calls: Sequence[Call], others: Sequence[Call]) -> int | None:
    """The first block whose arguments differ."""
    for index, (one, other) in enumerate(zip(calls, others, strict=True)):
        tensors = list(zip(_tensors(one), _tensors(other), strict=True))
        if any(a.shape != b.shape or not torch.equal(a, b) for a, b in tensors):
            return index
    return None


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


@contextmanager
def _replaced(model: PreTrainedModel, stand_ins: Sequence[_StandIn]) -> Iterator[None]:
    blocks = find_blocks(model)
    originals = list(blocks)
    for index, stand_in in enumerate(stand_ins):
        blocks[index] = stand_in
    try:
        yield
    finally:
        for index, original in enumerate(originals):
            blocks[index] = original
