"""What a kind of transform has to say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.models.files import TensorHeader
from shortened_llm.records import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTime:
    """What a block takes of the dense model's time."""

    whole: float
    """Share of the time of the model, 0 to 1."""
    parts: Mapping[Part, float]
    """That of each of its sub-layers; none where blocks do not have one of each."""

    def less(self, part: Part, share: float) -> "BlockTime":
        """With a share of the sub-layer's time saved."""
        saved = share * self.parts[part]
        return BlockTime(whole=self.whole - saved, parts={**self.parts, part: self.parts[part] - saved})


@contextmanager
def _as_it_is(model: PreTrainedModel, transform: object, tokens: torch.Tensor) -> Iterator[None]:
    """The imitation of tensors that were computed: a toy has none of them."""
    yield


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformKind:
    """One row of `KINDS`. `Any` is the record of the transform, in the indices of the unchanged model; in `config`,
    `files` and `change` in those of the blocks that are left. What a row leaves out is as in an unchanged model."""

    files: Callable[[Mapping[str, TensorHeader], str, PretrainedConfig, Any], dict[str, TensorHeader]]
    """Takes the tensors by name, the name before a block's index, and the configuration of the files; returns those of
    the changed model by their names there."""
    check: Callable[[PretrainedConfig, Any], None] = lambda config, transform: None
    """Raises `BadInputError` where the architecture cannot be changed so. Called once, when planning."""
    config: Callable[[PretrainedConfig, Any], PretrainedConfig] = lambda config, transform: config
    """Returns the configuration of the changed model, as a copy."""
    change: Callable[[PreTrainedModel, Any], None] | None = None
    """Changes the modules of a model of that configuration, which has no weights yet. None where the configuration
    tells all."""
    imitate: Callable[[PreTrainedModel, Any, torch.Tensor], AbstractContextManager[None]] = _as_it_is
    """Lets the unchanged model compute in another way, while the context lasts, what the changed one must. The last
    argument holds token ids, [batch, seq], that it may try."""
    of_toy: Callable[[PretrainedConfig, Any], Any] = lambda config, transform: transform
    """Takes the configuration of a toy, of as many blocks; returns what the transform is there."""
    time_left: Callable[[Sequence[BlockTime], Sequence[int], Any], Sequence[BlockTime] | None] = (
        lambda times, kept, transform: times
    )
    """Takes the time of each block of the dense model, and which blocks stay; returns the times that are left, or None
    where they cannot be told."""
