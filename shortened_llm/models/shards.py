"""Weights from safetensors straight into a model that has none yet: each process reads its own part of each tensor."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from shortened_llm.models.cpu import release_freed_memory
from shortened_llm.models.directory import model_directory, set_generation_config
from shortened_llm.models.files import refuse_missing
from shortened_llm.models.fresh import fresh_weights
from shortened_llm.models.sources import EVERYTHING, check_files, check_ties, find_sources
from shortened_llm.models.view import empty_view, view_files
from shortened_llm.records import ModelRef

T = TypeVar("T")

Initialise = Callable[[str, torch.Size], torch.Tensor]
"""The whole float32 value of the parameter with this name and shape; the same in every process."""

# What activation checkpointing and adapters put into the names of what they wrap.
WRAPPERS = ("_checkpoint_wrapped_module.", "base_layer.")


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
        BadInputError: as `sources.check_files` and `sources.check_ties`. Every process raises it, before any weight is
            filled.
    """
    files = view_files(ref)
    plain = empty_view(ref)
    with files.mapped() as stored_tensor:
        check_files(plain, files)
        sources = check_ties(find_sources(plain, files), plain, files, stored_tensor)
        added = sorted(_tensors(model).keys() - _tensors(plain).keys())
        if initialise is None:
            refuse_missing(files, added)
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
    set_generation_config(model, model_directory(ref))


@torch.no_grad()
def draw_weights(model: PreTrainedModel, ref: ModelRef, seed: int) -> None:
    """Replace all weights of a model that `fill_shards` has filled from `ref` by those of `fresh_weights`. No
    collective."""
    tensors = _tensors(model)
    drawn = set()
    for name, value in fresh_weights(empty_view(ref), seed):
        if id(tensors[name]) not in drawn:  # what is tied keeps the first
            _copy_own_part(tensors[name], value, cut=False)
            drawn.add(id(tensors[name]))


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, sharded or not, without its gradient's history. A collective where it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def device_of(model: PreTrainedModel) -> torch.device:
    """Where the model computes; shards that are offloaded lie elsewhere until they are gathered."""
    parameter = next(model.parameters())
    if not isinstance(parameter, DTensor) or parameter.device_mesh.device_type == "cpu":
        return parameter.device
    return torch.device(parameter.device_mesh.device_type, torch.cuda.current_device())


def plain_name(name: str) -> str:
    """The name of a tensor in the model without wrappers."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def with_plain_names(values: Mapping[str, T]) -> dict[str, T]:
    """Give the values their plain names, of which no two are equal."""
    plain = {plain_name(name): value for name, value in values.items()}
    assert len(plain) == len(values), "two tensors have one name without their wrappers"
    return plain


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint of the model holds, by plain name; tied weights under each of their names."""
    return with_plain_names(model.state_dict(keep_vars=True))


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
