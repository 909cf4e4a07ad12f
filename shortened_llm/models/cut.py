"""Config surgery: the configuration of a model that keeps some of its blocks, and the proof that they stay alike."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.families import (
    EXTRA_BLOCK_COUNTERS,
    FIXED_RULES,
    INDEX_LISTS,
    LAST_INDICES,
    PER_BLOCK_LISTS,
    PREFIXES,
    STEPS_WITH_EXCEPTIONS,
    TIES,
)

# Attributes of a block's modules that hold its index, which is meant to change.
INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")


def cut_config(config: PretrainedConfig, kept_blocks: tuple[int, ...]) -> PretrainedConfig:
    """A copy of `config` for a model with only `kept_blocks`.

    A copy, because a config made anew would lose private settings such as the attention implementation. It counts no
    blocks for multi-token prediction, which are left out of every view.

    Raises:
        BadInputError: a kept block would come out as another kind of block than it is in the dense model.
    """
    cut = copy.deepcopy(config)
    for name in EXTRA_BLOCK_COUNTERS:
        if getattr(cut, name, None):
            setattr(cut, name, 0)
    num_blocks = cut.num_hidden_layers
    if kept_blocks == tuple(range(num_blocks)):
        return cut
    for name, harmless, tie in TIES:
        if getattr(cut, name, None) not in (harmless, None):
            raise BadInputError(
                f"model.path: {cut.model_type} has {name}={getattr(cut, name)!r}: {tie}, so no block can be removed; "
                f"only {name}={harmless!r} is allowed"
            )
    _make_steps_explicit(cut, num_blocks)
    fields = vars(cut)  # not getattr: some of these lists are computed from other fields
    for name in PER_BLOCK_LISTS:
        if isinstance(fields.get(name), (list, tuple)) and len(fields[name]) == num_blocks:
            setattr(cut, name, [fields[name][block] for block in kept_blocks])
    for name in INDEX_LISTS:
        if isinstance(fields.get(name), (list, tuple)):
            setattr(cut, name, [kept_blocks.index(block) for block in fields[name] if block in kept_blocks])
    for name in PREFIXES:
        if fields.get(name) is not None:
            setattr(cut, name, sum(block < fields[name] for block in kept_blocks))
    for name in LAST_INDICES:
        if fields.get(name) is not None:
            setattr(cut, name, sum(block <= fields[name] for block in kept_blocks) - 1)
    cut.num_hidden_layers = len(kept_blocks)
    _check_blocks_stay(config, cut, kept_blocks)
    return cut


def _make_steps_explicit(config: PretrainedConfig, num_blocks: int) -> None:
    """Replace each step over the block index by a list of the blocks that it leaves out."""
    for name, exceptions in STEPS_WITH_EXCEPTIONS.items():
        step, listed = getattr(config, name, None), getattr(config, exceptions, None)
        if step and listed is not None:
            left_out = {block for block in range(num_blocks) if (block + 1) % step}
            setattr(config, exceptions, sorted({*listed, *left_out}))
            setattr(config, name, 1)


def _check_blocks_stay(dense: PretrainedConfig, cut: PretrainedConfig, kept_blocks: tuple[int, ...]) -> None:
    """Build both models without weights, and compare each kept block with what it was.

    This finds rules over the block index that live in transformers' code alone, such as a scale by depth. The cut
    config is also read back from its file, because that is what leaves the system.
    """
    before = _describe_blocks(dense)
    for config in (cut, _read_back(cut)):
        for new, (old, after) in enumerate(zip(kept_blocks, _describe_blocks(config), strict=True)):
            for name in sorted(before[old].keys() | after.keys()):
                was, would_be = before[old].get(name, "absent"), after.get(name, "absent")
                if was != would_be:
                    rules = ", ".join(f"{rule}={vars(dense)[rule]!r}" for rule in FIXED_RULES if vars(dense).get(rule))
                    raise BadInputError(
                        f"model.path: {dense.model_type} sets up its blocks by their index ({rules or 'in its code'}): "
                        f"block {old} would become block {new}, where {name} is {would_be!r} instead of {was!r}; only "
                        "plans that leave every kept block as it is are allowed"
                    )


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
