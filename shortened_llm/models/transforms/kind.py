"""What a kind of transform has to say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from shortened_llm.models.files import TensorHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformKind:
    """One row of `KINDS`. The last argument of each function is the transform's record."""

    check: Callable[[PretrainedConfig, Any], None]
    """Raises `BadInputError` where the architecture cannot be changed so. Called once, when planning."""
    config: Callable[[PretrainedConfig, Any], PretrainedConfig]
    """Returns the configuration of the changed model, as a copy."""
    files: Callable[[Mapping[str, TensorHeader], str, Any], dict[str, TensorHeader]]
    """Takes the tensors by name, and the name before a block's index; returns those of the changed model by their names
    there."""
    time_left: Callable[[Sequence[float], Any], float | None]
    """Takes the share of each block in the dense model's time; returns the share of the time that is left, or None
    where it cannot be told."""
