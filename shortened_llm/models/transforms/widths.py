"""Heads and MLP channels are removed: the tensors hold the rows and columns of what stays.

Blocks that end up with one width are a plain model. Where widths differ, all are padded with zeros to the widest, for
no plain configuration has a width for each block.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.axes import NOTHING, Axis, axes_of, widths_of, with_widths
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.files import TensorHeader, block_of
from shortened_llm.models.transforms.kind import BlockTime, TransformKind
from shortened_llm.records import WidthsTransform


def narrow_config(config: PretrainedConfig, transform: WidthsTransform) -> PretrainedConfig:
    """The configuration of blocks that are as wide as the widest."""
    groups, channels = _widest(transform, config.num_hidden_layers)
    with_widths(config, groups=groups, channels=channels)
    return config


def narrow_files(
    tensors: Mapping[str, TensorHeader], prefix: str, config: PretrainedConfig, transform: WidthsTransform
) -> dict[str, TensorHeader]:
    """The tensors with the rows and columns of what stays, padded to the widest block."""
    num_blocks = 1 + max(block for name in tensors if (block := block_of(name, prefix)) is not None)
    wide_groups, wide_channels = _widest(transform, num_blocks)
    row, widths, found = axes_of(config), widths_of(config), dict(tensors)
    for block in range(num_blocks):
        parts: list[tuple[tuple[Axis, ...], tuple[int, ...], int, int]] = [
            (row.channels, transform.kept_channels(block), wide_channels, transform.num_channels)
        ]
        if not isinstance(row.groups, str):
            parts.append((row.groups, transform.kept_groups(block), wide_groups, transform.num_groups))
        for axes, kept, wide, units in parts:
            padded = (*kept, *[NOTHING] * (wide - len(kept)))
            for axis in axes:
                header = found.get(name := f"{prefix}.{block}.{axis.tensor}")
                if header is not None and padded != tuple(range(units)):
                    positions = axis.positions(header.shape[axis.dim], widths, padded, units)
                    shape = tuple(len(positions) if d == axis.dim else n for d, n in enumerate(header.shape))
                    found[name] = replace(header, shape=shape, selection=((axis.dim, positions),))
    return found


def check_widths(config: PretrainedConfig, transform: WidthsTransform) -> None:
    """Check that it is known where heads and channels lie, and that each block keeps some.

    Raises:
        BadInputError: naming the field.
    """
    row, widths = axes_of(config), widths_of(config)
    assert (transform.num_groups, transform.num_channels) == (widths.groups, widths.channels), "another model's"
    if transform.groups and isinstance(row.groups, str):
        raise BadInputError(
            f"pruning.parts: the heads of {config.model_type} models cannot go: {row.groups}; allowed is parts: mlp"
        )
    for block in range(config.num_hidden_layers):
        if not transform.kept_groups(block) or not transform.kept_channels(block):
            raise BadInputError(f"pruning: block {block} would keep no head or no channel; choose a smaller ratio")


@contextmanager
def masked(model: PreTrainedModel, transform: WidthsTransform, tokens: torch.Tensor) -> Iterator[None]:
    """Set to zero what the output projections read of removed heads and channels, while the context lasts."""
    row, widths = axes_of(model.config), widths_of(model.config)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for index, block in enumerate(find_blocks(model)):
            tensors = dict(block.named_parameters())
            for axes, kept, units in (
                (row.groups, transform.kept_groups(index), transform.num_groups),
                (row.channels, transform.kept_channels(index), transform.num_channels),
            ):
                removed = sorted(set(range(units)) - set(kept))
                if removed and not isinstance(axes, str):
                    output = axes[-1]
                    weight = tensors[output.tensor]
                    before.append((weight, weight.clone()))
                    gone = output.positions(weight.shape[output.dim], widths, removed, units)
                    weight.index_fill_(output.dim, torch.tensor(gone), 0)
        yield
        for changed, value in before:
            changed.copy_(value)


def like_it(config: PretrainedConfig, transform: WidthsTransform) -> WidthsTransform:
    """About the same shares of the widths of another model, which has as many blocks: the last units go."""
    widths, blocks = widths_of(config), range(config.num_hidden_layers)
    return WidthsTransform.keeping(
        num_groups=widths.groups,
        num_channels=widths.channels,
        groups={
            block: range(_share(len(transform.kept_groups(block)), transform.num_groups, widths.groups))
            for block in blocks
        },
        channels={
            block: range(_share(len(transform.kept_channels(block)), transform.num_channels, widths.channels))
            for block in blocks
        },
    )


def _share(kept: int, number: int, other: int) -> int:
    """At least one, and not all where some go and there are several."""
    return other if kept == number else max(1, min(other - 1, round(kept / number * other)))


def _widest(transform: WidthsTransform, num_blocks: int) -> tuple[int, int]:
    """Numbers of groups and of channels of the widest blocks."""
    blocks = range(num_blocks)
    return (
        max(len(transform.kept_groups(block)) for block in blocks),
        max(len(transform.kept_channels(block)) for block in blocks),
    )


def time_left(times: Sequence[BlockTime], kept: Sequence[int], transform: WidthsTransform) -> list[BlockTime] | None:
    """The kept shares of heads and channels, those of the widest block, to which others are padded; not told where
    sub-layers were not timed."""
    if not all(times[block].parts for block in kept):
        return None
    groups = max(len(transform.kept_groups(block)) for block in kept) / transform.num_groups
    channels = max(len(transform.kept_channels(block)) for block in kept) / transform.num_channels
    left = list(times)
    for block in kept:
        left[block] = times[block].less("attention", 1 - groups).less("mlp", 1 - channels)
    return left


WIDTHS = TransformKind(
    check=check_widths,
    config=narrow_config,
    files=narrow_files,
    imitate=masked,
    of_toy=like_it,
    time_left=time_left,
)
