"""Where heads and MLP channels lie in the tensors of a family's blocks, as data.

A *group* is a key-value head with its query heads: of attention, that is the least that can go. Its rows lie in the
query, key and value projections, its columns in the output projection. A *channel* of the MLP has rows in the up and
gate projections, and a column in the down projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig

from shortened_llm.errors import BadInputError

Segments = Literal["one", "halves", "queries_keys_values"]
"""What lies one behind another along a dimension: one thing; gate and up; or queries, keys and values."""

# Position of a unit that is not there: zeros stand in its place.
NOTHING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The dimension of a tensor along which units lie, in equal parts of each segment."""

    tensor: str
    """Its name in the block, in files; blocks that lack it, such as a bias, do without."""
    dim: int
    segments: Segments = "one"

    def positions(self, size: int, widths: "Widths", kept: Sequence[int], units: int) -> tuple[int, ...]:
        """Where the kept units lie along the dimension, in the order given; `NOTHING` for those of a unit `NOTHING`.

        Args:
            size: of the dimension.
            units: number of units along it.
        """
        found: list[int] = []
        for start, length in self.segments_of(size, widths):
            each = length // units
            for unit in kept:
                first = start + unit * each
                found += [NOTHING] * each if unit == NOTHING else range(first, first + each)
        return tuple(found)

    def as_matrix(self, output: torch.Tensor) -> torch.Tensor:
        """The weight of an output projection, along whose inputs the units lie, as [outputs, inputs]; or back."""
        return output if self.dim == 1 else output.T

    def segments_of(self, size: int, widths: "Widths") -> list[tuple[int, int]]:
        """Beginning and length of each segment of the dimension."""
        shares = {"one": (1,), "halves": (1, 1), "queries_keys_values": (widths.queries_per_group, 1, 1)}[self.segments]
        lengths = [size * share // sum(shares) for share in shares]
        return [(sum(lengths[:index]), length) for index, length in enumerate(lengths)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyAxes:
    """One row of `AXES`."""

    groups: tuple[Axis, ...] | str
    """Those of attention, the output projection last; or why its width is fixed."""
    channels: tuple[Axis, ...]
    """Those of the MLP, the down projection last."""
    channels_field: str = "intermediate_size"
    """Name of their number in the configuration."""

    @property
    def group_axes(self) -> tuple[Axis, ...]:
        """The axes of attention; none where its width is fixed."""
        return () if isinstance(self.groups, str) else self.groups

    @property
    def outputs(self) -> tuple[Axis, ...]:
        """The output projections, of attention where its width is not fixed, and of the MLP: units lie along their
        inputs."""
        return (*self.group_axes[-1:], self.channels[-1])

    def outputs_of(self, parts: Literal["both", "mlp", "attention"]) -> tuple[Axis, ...]:
        """Those of the parts."""
        return {"both": self.outputs, "mlp": self.outputs[-1:], "attention": self.group_axes[-1:]}[parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """How wide the blocks of a model are, by its configuration."""

    groups: int
    queries_per_group: int
    head_dim: int
    channels: int


def _rows(*names: str, segments: Segments = "one") -> tuple[Axis, ...]:
    return tuple(
        Axis(tensor=f"{name}.{kind}", dim=0, segments=segments) for name in names for kind in ("weight", "bias")
    )


def _columns(name: str) -> tuple[Axis, ...]:
    return (Axis(tensor=f"{name}.weight", dim=1),)


_ATTENTION = _rows("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") + _columns("self_attn.o_proj")
_GATED = _rows("mlp.gate_proj", "mlp.up_proj") + _columns("mlp.down_proj")
_LLAMA = FamilyAxes(groups=_ATTENTION, channels=_GATED)
_NO_HEAD_DIM = "its configuration has no size of heads apart from their number"

AXES: dict[str, FamilyAxes] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "smollm3": _LLAMA,
    "granite": _LLAMA,
    "phi3": FamilyAxes(
        groups=_rows("self_attn.qkv_proj", segments="queries_keys_values") + _columns("self_attn.o_proj"),
        channels=_rows("mlp.gate_up_proj", segments="halves") + _columns("mlp.down_proj"),
    ),
    "olmo2": FamilyAxes(groups="a norm over all of its heads together would change", channels=_GATED),
    "gpt_neox": FamilyAxes(groups=_NO_HEAD_DIM, channels=_rows("mlp.dense_h_to_4h") + _columns("mlp.dense_4h_to_h")),
    # Its linear layers are Conv1D, whose weights are transposed.
    "gpt2": FamilyAxes(
        groups=_NO_HEAD_DIM,
        channels=(
            Axis(tensor="mlp.c_fc.weight", dim=1),
            Axis(tensor="mlp.c_fc.bias", dim=0),
            Axis(tensor="mlp.c_proj.weight", dim=0),
        ),
        channels_field="n_inner",
    ),
}
"""By model type."""


def axes_of(config: PretrainedConfig) -> FamilyAxes:
    """The row of a family.

    Raises:
        BadInputError: it has none.
    """
    if (row := AXES.get(config.model_type)) is None:
        raise BadInputError(
            f"pruning.unit: is 'width', but where heads and channels lie in {config.model_type} models is not known; "
            f"known are {', '.join(AXES)}; use unit: block"
        )
    return row


def widths_of(config: PretrainedConfig) -> Widths:
    """How wide the blocks are; raises as `axes_of`."""
    row = axes_of(config)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    channels = getattr(config, row.channels_field, None) or 4 * config.hidden_size
    return Widths(
        groups=groups,
        queries_per_group=heads // groups,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        channels=channels,
    )


def with_widths(config: PretrainedConfig, *, groups: int, channels: int) -> None:
    """Change a configuration, in place, to blocks of another width; the size of a head stays."""
    row, before = axes_of(config), widths_of(config)
    if groups != before.groups:
        config.num_attention_heads = groups * before.queries_per_group
        config.num_key_value_heads = groups
        config.head_dim = before.head_dim
    if channels != before.channels:
        setattr(config, row.channels_field, channels)


def unit_sizes(config: PretrainedConfig, block: nn.Module) -> tuple[int, int] | None:
    """Number of parameters of a group, 0 where none can go, and of a channel; None for a family without a row."""
    if (row := AXES.get(config.model_type)) is None:
        return None
    tensors, widths = dict(block.named_parameters()), widths_of(config)
    group, channel = (
        sum(tensors[axis.tensor].numel() for axis in axes if axis.tensor in tensors) // number
        for axes, number in ((row.group_axes, widths.groups), (row.channels, widths.channels))
    )
    return group, channel
