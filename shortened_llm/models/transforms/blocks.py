"""Whole blocks are removed: the configuration and the tensors of what stays, and the proof that it stays alike."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.bypass import bypassing
from shortened_llm.models.families import (
    FIXED_RULES,
    INDEX_LISTS,
    LAST_INDICES,
    PER_BLOCK_LISTS,
    PREFIXES,
    STEPS_WITH_EXCEPTIONS,
    TIES,
)
from shortened_llm.models.files import TensorHeader, block_of
from shortened_llm.models.transforms.kind import BlockTime, TransformKind
from shortened_llm.records import PARTS, BlocksTransform

# Attributes of a block's modules that hold its index, which is meant to change.
INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")


def cut_config(dense: PretrainedConfig, transform: BlocksTransform) -> PretrainedConfig:
    """A copy of `dense` for a model with only some blocks.

    A copy, because a config made anew would lose private settings such as the attention implementation.
    """
    config, kept = copy.deepcopy(dense), transform.kept
    num_blocks = config.num_hidden_layers
    _make_steps_explicit(config, num_blocks)
    fields = vars(config)  # not getattr: some of these lists are computed from other fields
    for name in PER_BLOCK_LISTS:
        if isinstance(fields.get(name), (list, tuple)) and len(fields[name]) == num_blocks:
            setattr(config, name, [fields[name][block] for block in kept])
    for name in INDEX_LISTS:
        if isinstance(fields.get(name), (list, tuple)):
            setattr(config, name, [kept.index(block) for block in fields[name] if block in kept])
    for name in PREFIXES:
        if fields.get(name) is not None:
            setattr(config, name, sum(block < fields[name] for block in kept))
    for name in LAST_INDICES:
        if fields.get(name) is not None:
            setattr(config, name, sum(block <= fields[name] for block in kept) - 1)
    config.num_hidden_layers = len(kept)
    return config


def cut_files(
    tensors: Mapping[str, TensorHeader], prefix: str, config: PretrainedConfig, transform: BlocksTransform
) -> dict[str, TensorHeader]:
    """The tensors of the blocks that stay, renumbered, and all that lie outside the blocks."""
    position = {block: index for index, block in enumerate(transform.kept)}
    found = {}
    for name, header in tensors.items():
        block = block_of(name, prefix)
        if block is None:
            found[name] = header
        elif block in position:
            found[f"{prefix}.{position[block]}{name.removeprefix(f'{prefix}.{block}')}"] = header
    return found


def check_blocks(dense: PretrainedConfig, transform: BlocksTransform) -> None:
    """Build both models without weights, and compare each kept block with what it was.

    This finds rules over the block index that live in transformers' code alone, such as a scale by depth. The cut
    config is also read back from its file, because that is what leaves the system.

    Raises:
        BadInputError: blocks depend on others, or a kept block would come out as another kind of block.
    """
    for name, harmless, tie in TIES:
        if getattr(dense, name, None) not in (harmless, None):
            raise BadInputError(
                f"model.path: {dense.model_type} has {name}={getattr(dense, name)!r}: {tie}, so no block can be "
                f"removed; only {name}={harmless!r} is allowed"
            )
    cut, before = cut_config(dense, transform), _describe_blocks(dense)
    for config in (cut, _read_back(cut)):
        for new, (old, after) in enumerate(zip(transform.kept, _describe_blocks(config), strict=True)):
            for name in sorted(before[old].keys() | after.keys()):
                was, would_be = before[old].get(name, "absent"), after.get(name, "absent")
                if was != would_be:
                    rules = ", ".join(f"{rule}={vars(dense)[rule]!r}" for rule in FIXED_RULES if vars(dense).get(rule))
                    raise BadInputError(
                        f"model.path: {dense.model_type} sets up its blocks by their index ({rules or 'in its code'}): "
                        f"block {old} would become block {new}, where {name} is {would_be!r} instead of {was!r}; only "
                        "plans that leave every kept block as it is are allowed"
                    )


def _make_steps_explicit(config: PretrainedConfig, num_blocks: int) -> None:
    """Replace each step over the block index by a list of the blocks that it leaves out."""
    for name, exceptions in STEPS_WITH_EXCEPTIONS.items():
        step, listed = getattr(config, name, None), getattr(config, exceptions, None)
        if step and listed is not None:
            left_out = {block for block in range(num_blocks) if (block + 1) % step}
            setattr(config, exceptions, sorted({*listed, *left_out}))
            setattr(config, name, 1)


def _read_back(config: PretrainedConfig) -> PretrainedConfig:
    with TemporaryDirectory(prefix="shortened_llm_config_") as directory:
        config.to_json_file(Path(directory) / "config.json")
        return type(config).from_json_file(Path(directory) / "config.json")


def _describe_blocks(config: PretrainedConfig) -> list[dict[str, object]]:
    """What sets up each block: modules, their plain attributes, shapes of parameters, entries in lists over blocks."""
    config = copy.deepcopy(config)  # a model completes its config
    with torch.device("meta"):
        blocks = find_blocks(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config))
    described = [_describe(block) for block in blocks]
    for name in PER_BLOCK_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and len(values) == len(blocks):
            for block, value in zip(described, values, strict=True):
                block[f"its entry in {name}"] = value
    return described


def _describe(block: nn.Module) -> dict[str, object]:
    described: dict[str, object] = {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}
    for path, module in block.named_modules():
        described[path or "its class"] = type(module).__name__
        for name, value in vars(module).items():
            if isinstance(value, (bool, int, float, str, type(None))) and name not in INDEX_ATTRIBUTES:
                described[f"{path}.{name}".removeprefix(".")] = value
    return described


def time_left(times: Sequence[BlockTime], kept: Sequence[int], transform: BlocksTransform) -> list[BlockTime]:
    """None of the removed blocks."""
    nothing = BlockTime(whole=0.0, parts=dict.fromkeys(PARTS, 0.0))
    return [time if block in transform.kept else nothing for block, time in enumerate(times)]


def pass_over(model: PreTrainedModel, transform: BlocksTransform, tokens: torch.Tensor) -> AbstractContextManager[None]:
    """Let the removed blocks pass on what they get."""
    return bypassing(model, transform.removed(len(find_blocks(model))), tokens)


BLOCKS = TransformKind(
    check=check_blocks,
    config=cut_config,
    files=cut_files,
    imitate=pass_over,
    time_left=time_left,
)
