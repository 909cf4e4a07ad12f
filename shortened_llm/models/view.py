"""A model as it is loaded: configuration and tensors of its files, under its transforms.

Whoever loads a model, whole, streamed or in shards, reads these, and never learns which kinds of transforms there are.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.models.axes import unit_sizes
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES, empty_model
from shortened_llm.models.directory import load_config, model_directory
from shortened_llm.models.families import EXTRA_BLOCK_COUNTERS
from shortened_llm.models.files import TensorFiles, TensorHeaders, block_of, block_prefix, open_tensor_files
from shortened_llm.models.linears import linear_sizes
from shortened_llm.models.parts import part_sizes
from shortened_llm.models.transforms import KINDS
from shortened_llm.models.transforms.kind import TransformKind
from shortened_llm.records import BlocksTransform, ModelRef, ModelSize, Transform, kept_blocks

Headers = TypeVar("Headers", bound=TensorHeaders)


def transformed_config(config: PretrainedConfig, transforms: Sequence[Transform]) -> PretrainedConfig:
    """A copy of a configuration, changed by each transform. It counts no blocks for multi-token prediction, which are
    left out of every view."""
    changed = copy.deepcopy(config)
    for name in EXTRA_BLOCK_COUNTERS:
        if getattr(changed, name, None):
            setattr(changed, name, 0)
    for kind, transform in _in_turn(transforms, config.num_hidden_layers):
        changed = kind.config(changed, transform)
    return changed


def transformed_headers(headers: Headers, config: PretrainedConfig, transforms: Sequence[Transform] = ()) -> Headers:
    """The tensors of files that hold a model of this configuration, under each transform, by their names in the model.

    Raises:
        BadInputError: the names do not tell the blocks.
    """
    num_blocks = config.num_hidden_layers
    prefix = block_prefix(headers.of, num_blocks)
    tensors = {name: header for name, header in headers.of.items() if (block_of(name, prefix) or 0) < num_blocks}
    for kind, transform in _in_turn(transforms, num_blocks):
        tensors = kind.files(tensors, prefix, config, transform)
    return replace(headers, of=tensors)


def transformed_model(
    config: PretrainedConfig, transforms: Sequence[Transform], dtype: str = "float32"
) -> PreTrainedModel:
    """The model of a configuration under transforms, without weights; see `empty_model`."""
    model = empty_model(transformed_config(config, transforms), dtype)
    change_modules(model, transforms, config.num_hidden_layers)
    return model


def change_modules(model: PreTrainedModel, transforms: Sequence[Transform], num_blocks: int) -> None:
    """Change the modules of a model of the transformed configuration, before it has weights.

    Args:
        num_blocks: of the files.
    """
    for kind, transform in _in_turn(transforms, num_blocks):
        if kind.change is not None:
            kind.change(model, transform)


def _in_turn(transforms: Sequence[Transform], num_blocks: int) -> list[tuple[TransformKind, Transform]]:
    """Each transform with its kind, in the order in which they are done, in the indices of the blocks by then."""
    places = {block: place for place, block in enumerate(kept_blocks(transforms, num_blocks))}
    return [
        (kind, one if isinstance(one, BlocksTransform) else one.renumbered(places))
        for name, kind in KINDS.items()
        for one in transforms
        if one.kind == name
    ]


def view_config(ref: ModelRef) -> PretrainedConfig:
    """The configuration of the model that loading yields; raises as `load_config`."""
    return transformed_config(load_config(model_directory(ref)), ref.transforms)


def view_files(ref: ModelRef) -> TensorFiles:
    """The tensors of the model that loading yields, to be read by their names there; raises as `read_headers`."""
    return _transformed_files(ref, ref.transforms)


def empty_view(ref: ModelRef, dtype: str = "float32") -> PreTrainedModel:
    """The model that loading yields, without weights; see `empty_model`."""
    return transformed_model(load_config(model_directory(ref)), ref.transforms, dtype)


def plain_model(ref: ModelRef, dtype: str = "float32") -> PreTrainedModel:
    """The model that plain transformers makes of an export of the view, without weights."""
    return empty_model(view_config(ref), dtype)


def plain_files(ref: ModelRef) -> TensorFiles:
    """The stored tensors behind an export of the view; those that `view_files` lacks are zeros there."""
    return _transformed_files(ref, [transform for transform in ref.transforms if transform.is_compact])


def _transformed_files(ref: ModelRef, transforms: Sequence[Transform]) -> TensorFiles:
    directory = model_directory(ref)
    return transformed_headers(open_tensor_files(directory), load_config(directory), transforms)


def check_transforms(config: PretrainedConfig, transforms: Sequence[Transform]) -> None:
    """Raises `BadInputError` where the architecture cannot be changed so. Loading takes it for granted."""
    for transform in transforms:
        KINDS[transform.kind].check(config, transform)


def size_of(config: PretrainedConfig, dtype: str) -> ModelSize:
    """Parameters of the blocks and of the rest of a model. Tied weights count once.

    Args:
        dtype: type of the weights when they are exported.
    """
    model = empty_model(config)
    blocks = tuple(sum(weight.numel() for weight in block.parameters()) for block in find_blocks(model))
    return ModelSize(
        block_parameters=blocks,
        part_parameters=part_sizes(find_blocks(model)),
        width_parameters=unit_sizes(config, find_blocks(model)[0]),
        linear_parameters=linear_sizes(find_blocks(model)),
        other_parameters=sum(weight.numel() for weight in model.parameters()) - sum(blocks),
        bytes_per_parameter=DTYPES[dtype].itemsize,
    )
