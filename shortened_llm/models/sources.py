"""Which stored tensors make up which tensors of a model, and whether the files hold what it needs."""

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from shortened_llm.errors import BadInputError
from shortened_llm.models.families import DERIVED_TENSORS
from shortened_llm.models.files import (
    TensorHeaders,
    block_of,
    block_prefix,
    refuse_mismatched,
    refuse_missing,
    unjoinable_experts,
)

EVERYTHING = slice(None)
FLOATS = ("F32", "BF16", "F16")
"""Types of weights that are numbers by themselves, as safetensors names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Stored tensors that make up a tensor of the model, or several where transformers splits one."""

    target: str
    """The tensor of the model, or the first of them."""
    names: Mapping[str, Sequence[str]]
    """Per pattern of the converter: stored tensors by their names in the view, in order. One name where nothing is
    converted."""
    converter: WeightConverter | None

    @property
    def stacks(self) -> bool:
        """Whether each stored tensor, such as an expert, becomes an entry of the target's first dimension."""
        return self.converter is not None and all(
            (isinstance(operation, MergeModulelist) and operation.dim == 0)
            or (isinstance(operation, Concatenate) and operation.dim > 0)
            for operation in self.converter.operations
        )

    def read(
        self, plain: PreTrainedModel, stored: Callable[[str], torch.Tensor], rows: slice
    ) -> Mapping[str, torch.Tensor]:
        """`{name in the model: value}`; of a stack only `rows`, of the rest everything.

        Args:
            plain: the model without wrappers, which tells a converter the shapes.
            stored: gives the stored tensor with this name in the view.
        """
        if self.converter is None:
            ((name,),) = self.names.values()
            return {self.target: stored(name)}
        names = {pattern: names[rows] for pattern, names in self.names.items()}
        if not all(names.values()):
            return {self.target: torch.empty(0)}  # there are more processes than experts
        converter = copy.deepcopy(self.converter)  # it collects tensors
        for pattern, of_pattern in names.items():
            for name in of_pattern:
                converter.add_tensor(self.target, name, pattern, stored(name))
        values = converter.convert(self.target, model=plain, config=plain.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in values.items()}


def find_sources(plain: PreTrainedModel, files: TensorHeaders) -> list[Source]:
    """Which stored tensors make up which tensors of the model, by the rules of transformers' own loading.

    Args:
        plain: the model without weights.
        files: the tensors of its view.
    """
    mapping = get_model_conversion_mapping(plain)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted, prefix = plain.state_dict(), plain.base_model_prefix
    found: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    # Experts are stacked in the order of their numbers.
    for name in sorted(files.of, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:  # as it is in memory, so not to be renamed
            target, pattern = rename_source_key(name, [], [], prefix, wanted)
        if target in wanted:
            found[target][pattern].append(name)
    sources = []
    for target, by_pattern in found.items():
        converted = {pattern: names for pattern, names in by_pattern.items() if pattern is not None}
        if converted:
            converter = converter_of[next(iter(converted))]
            sources.append(Source(target=target, names=converted, converter=converter))
        else:
            sources.append(Source(target=target, names={"": by_pattern[None][:1]}, converter=None))
    return sources


def check_files(plain: PreTrainedModel, headers: TensorHeaders) -> tuple[str, ...]:
    """Check from the headers that the files hold the model: every tensor, in its shape, as a number of 16 or 32 bits,
    and nothing in its blocks that is not understood.

    Args:
        plain: the model without weights.
        headers: the tensors of its view.

    Returns:
        Names of stored tensors that are left out, because the model's class does without them.

    Raises:
        BadInputError: with the tensor and what to give instead.
    """
    sources = find_sources(plain, headers)
    _check_shapes(sources, plain, headers)
    wanted = plain.state_dict()
    consumed = {name: source.target for source in sources for names in source.names.values() for name in names}
    for name, target in consumed.items():
        if headers.of[name].dtype not in FLOATS and wanted[target].is_floating_point():
            raise BadInputError(
                f"model.path: {headers.place} holds {headers.of[name].name} as {headers.of[name].dtype}, not as a "
                "number of 16 or 32 bits; quantised weights cannot be pruned or trained: give the full-precision model"
            )
    left_out = [name for name in headers.of if name not in consumed and not _is_derived(name, plain, headers)]
    prefix = block_prefix(headers.of, plain.config.num_hidden_layers)
    for name in left_out:
        if block_of(name, prefix) is not None and not _is_ignored(name, plain):
            raise BadInputError(
                f"model.path: {headers.place} holds {(stored := headers.of[name].name)}, which {type(plain).__name__} "
                f"has no place for, so that block {block_of(stored, prefix)} would not be what was trained; give the "
                "full-precision model in transformers' layout, without adapters or quantisation beside its weights"
            )
    return tuple(sorted(left_out))


def check_ties(
    sources: Sequence[Source],
    plain: PreTrainedModel,
    headers: TensorHeaders,
    stored: Callable[[str], torch.Tensor],
) -> list[Source]:
    """The sources without a second one of tied weights.

    Args:
        stored: gives the stored tensor with this name in the view.

    Raises:
        BadInputError: the files hold two values for tied weights.
    """
    wanted = plain.state_dict(keep_vars=True)
    first: dict[int, Source] = {}
    for source in sources:
        other = first.setdefault(id(wanted[source.target]), source)
        if other is not source:
            (one,), (two,) = (s.read(plain, stored, EVERYTHING).values() for s in (other, source))
            if one.dtype != two.dtype or not torch.equal(one, two):
                raise BadInputError(
                    f"model.path: {headers.place} holds two values for {other.target} and {source.target}, which its "
                    "config.json ties (tie_word_embeddings); set it to false, or remove one of them"
                )
    return list(first.values())


def _check_shapes(sources: Sequence[Source], plain: PreTrainedModel, headers: TensorHeaders) -> None:
    wanted = plain.state_dict(keep_vars=True)
    ties: dict[int, list[str]] = defaultdict(list)
    for name, tensor in wanted.items():
        ties[id(tensor)].append(name)
    shapes: dict[str, torch.Size] = {}
    stored = headers.shapes
    for source in sources:
        try:
            values = source.read(plain, lambda name: torch.empty(stored[name], device="meta"), EVERYTHING)
        except (RuntimeError, ValueError, KeyError, IndexError):
            raise unjoinable_experts(headers.place) from None
        shapes |= {name: value.shape for name, value in values.items()}
    missing = [name for name, tensor in wanted.items() if not any(tied in shapes for tied in ties[id(tensor)])]
    refuse_missing(headers, missing)
    mismatched = [(name, shape, wanted[name].shape) for name, shape in shapes.items() if shape != wanted[name].shape]
    refuse_mismatched(headers, mismatched)


def _is_derived(name: str, plain: PreTrainedModel, headers: TensorHeaders) -> bool:
    """Whether the model computes the tensor by itself: older files hold masks and frequencies."""
    buffers = {buffer for buffer, _ in plain.named_buffers()}
    if name in buffers or f"{plain.base_model_prefix}.{name}" in buffers:
        return True
    return any(
        re.search(pattern, name) and len(headers.of[name].shape) in ranks for pattern, ranks in DERIVED_TENSORS.items()
    )


def _is_ignored(name: str, plain: PreTrainedModel) -> bool:
    """Whether the model's class says that it does without the tensor."""
    return any(re.search(pattern, name) for pattern in plain._keys_to_ignore_on_load_unexpected or ())
