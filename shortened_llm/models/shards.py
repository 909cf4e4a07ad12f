"""Weights from safetensors straight into a model that has none yet: each process reads its own part of each tensor."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
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
from shortened_llm.models.cpu import release_freed_memory
from shortened_llm.models.files import TensorFiles, open_tensor_files, renumbered
from shortened_llm.models.load import (
    empty_model,
    model_directory,
    refuse_mismatched,
    refuse_missing,
    set_generation_config,
    unjoinable_experts,
)
from shortened_llm.records import ModelRef

Initialise = Callable[[str, torch.Size], torch.Tensor]
"""The whole float32 value of the parameter with this name and shape; the same in every process."""

# What activation checkpointing and adapters put into the names of what they wrap.
WRAPPERS = ("_checkpoint_wrapped_module.", "base_layer.")

EVERYTHING = slice(None)


@torch.no_grad()
def fill_shards(
    model: PreTrainedModel, ref: ModelRef, *, device: str | torch.device, initialise: Initialise | None = None
) -> None:
    """Give a model of `empty_model` its weights, on `device`, and its generation settings. No collective.

    Since it was built, the model may have been wrapped for activation checkpointing, given adapters, cast per
    parameter, and sharded by `fully_shard` over any mesh; a stored tensor is cast to the type of its parameter.

    Host memory beyond this process's shard: on an accelerator the part of one tensor, on a CPU nothing, since parts
    are copied out of the mapped files. Where transformers stacks experts, twice this process's part of one stack, in
    the type of the files. Conversions of other kinds would take whole tensors; the supported families need none.

    Args:
        model: its parameters on the meta device, its buffers real.
        ref: the view that the model was built for.
        initialise: makes the parameters that adapters added, which no file holds.

    Raises:
        BadInputError: the files lack a tensor of the model, have it in another shape, or hold two values for tied
            weights. Every process raises it, before any weight is filled.
    """
    directory = model_directory(ref)
    files = open_tensor_files(directory)
    plain = empty_model(copy.deepcopy(model.config))
    with files.mapped() as stored_tensor:
        sources = _check(_find_sources(plain, files, ref), plain, files, ref, stored_tensor)
        added = sorted(_tensors(model).keys() - _tensors(plain).keys())
        if initialise is None:
            refuse_missing(directory, added, ref.kept_blocks)
        _materialise(model, torch.device(device))
        tensors = _tensors(model)
        filled = []
        for source in sources:
            rows = _own_part(tensors[source.target])[0] if source.stacks else EVERYTHING
            for name, value in source.read(plain, stored_tensor, rows).items():
                _copy_own_part(tensors[name], value, cut=source.stacks)
                filled.append(id(tensors[name]))
            if source.converter is not None:
                release_freed_memory()  # each stack would take new pages
    if initialise is not None:
        for name in added:
            _copy_own_part(tensors[name], initialise(name, tensors[name].shape), cut=False)
            filled.append(id(tensors[name]))
    assert sorted(filled) == sorted({id(tensor) for tensor in tensors.values()}), "not every weight was filled once"
    set_generation_config(model, directory)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, sharded or not, without its gradient's history. A collective where it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def plain_name(name: str) -> str:
    """The name of a tensor in the model without wrappers."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Stored tensors that make up a tensor of the model, or several where transformers splits one."""

    target: str
    """The tensor of the model, or the first of them."""
    names: Mapping[str, Sequence[str]]
    """Per pattern of the converter: names on disk, in order. One name where nothing is converted."""
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
            stored: gives the tensor with this name on disk.
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


def _find_sources(plain: PreTrainedModel, files: TensorFiles, ref: ModelRef) -> list[_Source]:
    """Which stored tensors make up which tensors of the model, by the rules of transformers' own loading."""
    mapping = get_model_conversion_mapping(plain)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted, prefix = plain.state_dict(), plain.base_model_prefix
    found: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    in_view = renumbered(files.shapes, ref.kept_blocks, ref.num_blocks)
    # Experts are stacked in the order of their numbers.
    for name, new_name in sorted(in_view.items(), key=lambda item: dot_natural_key(item[1])):
        target, pattern = rename_source_key(new_name, renamings, converters, prefix, wanted)
        if target not in wanted and new_name in wanted:  # as it is in memory, so not to be renamed
            target, pattern = rename_source_key(new_name, [], [], prefix, wanted)
        if target in wanted:
            found[target][pattern].append(name)
    sources = []
    for target, by_pattern in found.items():
        converted = {pattern: names for pattern, names in by_pattern.items() if pattern is not None}
        if converted:
            converter = converter_of[next(iter(converted))]
            sources.append(_Source(target=target, names=converted, converter=converter))
        else:
            sources.append(_Source(target=target, names={"": by_pattern[None][:1]}, converter=None))
    return sources


def _check(
    sources: Sequence[_Source],
    plain: PreTrainedModel,
    files: TensorFiles,
    ref: ModelRef,
    stored: Callable[[str], torch.Tensor],
) -> list[_Source]:
    """The sources without a second one of tied weights; raises where they are not what the model needs."""
    wanted = _tensors(plain)
    ties: dict[int, list[str]] = defaultdict(list)
    for name, tensor in wanted.items():
        ties[id(tensor)].append(name)
    shapes: dict[str, torch.Size] = {}
    for source in sources:
        try:
            values = source.read(plain, lambda name: torch.empty(files.shapes[name], device="meta"), EVERYTHING)
        except (RuntimeError, ValueError, KeyError, IndexError):
            raise unjoinable_experts(files.directory) from None
        shapes |= {name: value.shape for name, value in values.items()}
    missing = [name for name, tensor in wanted.items() if not any(tied in shapes for tied in ties[id(tensor)])]
    refuse_missing(files.directory, missing, ref.kept_blocks)
    mismatched = [(name, shape, wanted[name].shape) for name, shape in shapes.items() if shape != wanted[name].shape]
    refuse_mismatched(files.directory, mismatched, ref.kept_blocks)
    first: dict[int, _Source] = {}
    for source in sources:
        other = first.setdefault(id(wanted[source.target]), source)
        if other is not source:
            (one,), (two,) = (s.read(plain, stored, EVERYTHING).values() for s in (other, source))
            if one.dtype != two.dtype or not torch.equal(one, two):
                raise BadInputError(
                    f"model.path: {files.directory} holds two values for {other.target} and {source.target}, which its "
                    "config.json ties (tie_word_embeddings); set it to false, or remove one of them"
                )
    return list(first.values())


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint of the model holds, by plain name; tied weights under each of their names."""
    return {plain_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Move buffers to `device`, and give parameters memory there that is not filled yet; what is tied stays tied."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places[id(parameter)].append((module, name))
    # Not to_empty(), which would replace the buffers. FSDP pads its shards when it sees _apply.
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
    for (module, name), *others in places.values():
        for other, other_name in others:
            setattr(other, other_name, getattr(module, name))


def _own_part(tensor: torch.Tensor) -> tuple[slice, ...]:
    """Where this process's part lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    assert all(type(placement) in (Replicate, Shard) for placement in tensor.placements), tensor.placements
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tensor.to_local().shape == shape, (tensor.to_local().shape, shape)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def _copy_own_part(tensor: torch.Tensor, value: torch.Tensor, *, cut: bool) -> None:
    """Copy this process's part of `value`, which is `cut` where it is that part already in its first dimension."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if local.numel():
        part = _own_part(tensor)
        # To the device in the type of the files; the cast then takes no memory of the host.
        local.copy_(value[(EVERYTHING, *part[1:]) if cut else part].to(local.device))
