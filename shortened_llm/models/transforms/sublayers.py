"""The attention or the MLP of some blocks is removed: nothing is added to the hidden states where it stood."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from shortened_llm.errors import BadInputError
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import empty_model
from shortened_llm.models.files import TensorHeader, block_of
from shortened_llm.models.parts import PART_NAMES, lacks, part_name, remove_part, without_parts
from shortened_llm.models.transforms.kind import BlockTime, TransformKind
from shortened_llm.records import PARTS, SublayersTransform


def leave_out(
    tensors: Mapping[str, TensorHeader], prefix: str, config: PretrainedConfig, transform: SublayersTransform
) -> dict[str, TensorHeader]:
    """The tensors without those of the removed sub-layers."""
    return {name: header for name, header in tensors.items() if not _is_removed(name, prefix, transform)}


def _is_removed(name: str, prefix: str, transform: SublayersTransform) -> bool:
    block = block_of(name, prefix)
    if block is None:
        return False
    first, _, _ = name.removeprefix(f"{prefix}.{block}.").partition(".")
    return any(first in PART_NAMES[part] for part in transform.parts_of(block))


def remove_sublayers(model: PreTrainedModel, transform: SublayersTransform) -> None:
    """Replace the modules of the removed sub-layers, and let the first attention of each kind that is left have the
    first place of that kind in the KV cache."""
    blocks = find_blocks(model)
    for block, part in transform.removed:
        remove_part(blocks[block], part)
    # transformers asks the first place of a kind how long the past is.
    for of_kind in _kinds_of_attention(model.config).values():
        left = [index for index in of_kind if not lacks(blocks[index], "attention")]
        if left and left[0] != of_kind[0]:
            for module in _attention(blocks[left[0]]).modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = of_kind[0]  # type: ignore[assignment]


@contextmanager
def zeroed(model: PreTrainedModel, transform: SublayersTransform, tokens: torch.Tensor) -> Iterator[None]:
    """Set the weights of the removed sub-layers to zero, as a plain export has them, while the context lasts.

    Raises:
        BadInputError: more than that stands in the way of the hidden states.
    """
    blocks = find_blocks(model)
    for block in {block for block, _ in transform.removed}:
        _check_nothing_else(model, block, tokens)
    modules = [getattr(blocks[block], part_name(blocks[block], part)) for block, part in transform.removed]
    weights = [weight for module in modules for weight in module.parameters()]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
        yield
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(value)


def _check_nothing_else(model: PreTrainedModel, index: int, tokens: torch.Tensor) -> None:
    """Check that a block without both sub-layers passes on what it gets."""
    block = find_blocks(model)[index]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_: nn.Module, positional: tuple, keywords: Mapping[str, torch.Tensor], output: Any) -> None:
        given = positional[0] if positional else keywords["hidden_states"]
        seen.append((given, output[0] if isinstance(output, (tuple, list)) else output))

    handle = block.register_forward_hook(note, with_kwargs=True)
    with torch.no_grad(), without_parts(block, PARTS):
        model(input_ids=tokens, use_cache=False)
    handle.remove()
    if not all(torch.equal(given, returned) for given, returned in seen):
        raise BadInputError(
            f"pruning.unit: a block of {model.config.model_type} models without attention and MLP does not pass on "
            "what it gets, as where a norm with a bias, or a scale, stands behind them: its sub-layers cannot be "
            "removed; use unit: block"
        )


def check_sublayers(dense: PretrainedConfig, transform: SublayersTransform) -> None:
    """Check that blocks have these modules, and that attention is left to tell how long the past is.

    Raises:
        BadInputError: they have not, or none is.
    """
    blocks = find_blocks(empty_model(dense))
    gone = {block for block, part in transform.removed if part == "attention"}
    for block, part in transform.removed:
        part_name(blocks[block], part)
    for kind, of_kind in _kinds_of_attention(dense).items():
        if gone.issuperset(of_kind):
            raise BadInputError(
                f"pruning: the attention of all {len(of_kind)} blocks with {kind} goes, and the KV cache is counted "
                "by it; protect one (pruning.protect_first), or choose a smaller ratio"
            )


def _kinds_of_attention(config: PretrainedConfig) -> dict[str, list[int]]:
    """The blocks with each kind of attention, which has its own masks and places in the KV cache."""
    kinds = getattr(config, "layer_types", None) or ["attention"] * config.num_hidden_layers
    found: dict[str, list[int]] = {}
    for block, kind in enumerate(kinds):
        found.setdefault(kind, []).append(block)
    return found


def _attention(block: nn.Module) -> nn.Module:
    module: nn.Module = getattr(block, part_name(block, "attention"))
    return module


def time_left(times: Sequence[BlockTime], kept: Sequence[int], transform: SublayersTransform) -> list[BlockTime] | None:
    """None of the removed sub-layers; not told where these were not timed."""
    left = list(times)
    for block, part in transform.removed:
        if not left[block].parts:
            return None
        left[block] = left[block].less(part, 1.0)
    return left


SUBLAYERS = TransformKind(
    check=check_sublayers,
    files=leave_out,
    change=remove_sublayers,
    imitate=zeroed,
    time_left=time_left,
)
