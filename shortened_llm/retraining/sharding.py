"""Open a model in its FSDP2 form: the one way, at world size 1 too."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from shortened_llm.config import RetrainingConfig
from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.build import DTYPES
from shortened_llm.models.head import attach, final_hidden, sequence_nll, training_loss
from shortened_llm.models.shards import Initialise, fill_shards
from shortened_llm.models.view import empty_view
from shortened_llm.records import ModelRef

# Gathered parameters may stay between forward and backward while they take less than this share of the memory.
RESIDENT_SHARE = 0.2
# On CPU the fused attention's backward pass is slow: 21 ms forward and backward against 7 ms of plain matrix products
# for 4 x 256 tokens of SmolLM2 in bfloat16 on 2 cores. These hold length x length scores, so only for short sequences.
PLAIN_ATTENTION_LENGTH = 512
# Blocks of a class share their compiled forms: one for each kind of block, in training and in validation, of student
# and teacher. Beyond torch's limit of 8 the others would run uncompiled.
COMPILED_FORMS = 64
METHODS = (training_loss, sequence_nll, final_hidden)


def open_sharded(
    ref: ModelRef,
    mesh: DeviceMesh,
    dtype: str,
    placement: RetrainingConfig,
    *,
    device: torch.device,
    sequence_length: int,
    prepare: Callable[[PreTrainedModel], None] | None = None,
    initialise: Initialise | None = None,
) -> PreTrainedModel:
    """The model of `ref` in training mode, sharded over `mesh`; no process ever holds more of it than its shard.

    Args:
        dtype: to compute in.
        sequence_length: of what it will be trained on; chooses the kind of attention, which changes no result beyond
            rounding.
        prepare: changes the model while it has neither weights nor shards: freezes, adds adapters.
        initialise: see `fill_shards`, which says too what is raised.
    """
    model = empty_view(ref).train()
    if device.type == "cpu" and sequence_length <= PLAIN_ATTENTION_LENGTH:
        model.set_attn_implementation("eager")
    if prepare is not None:
        prepare(model)
    shard_model(model, mesh, dtype, placement)
    fill_shards(model, ref, device="cpu" if placement.cpu_offload else device, initialise=initialise)
    for module in model.modules():  # of an offloaded model only the parameters stay behind
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def fault_of_dtype(dtype: str, device: torch.device) -> str | None:
    """Why the device cannot compute in a type; None where it can."""
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"model.dtype: is 'bfloat16', which {torch.cuda.get_device_name(device)} cannot compute in; set float32"
    return None


def make_mesh(device: torch.device, world_size: int, shard_group: int | None) -> DeviceMesh:
    """All workers as one line, or as copies of the model, each sharded over `shard_group` neighbours (HSDP).

    With a group per node, weights travel inside nodes only; between them, one all-reduce of gradients per step.
    """
    if shard_group is None or shard_group == world_size:
        return init_device_mesh(device.type, (world_size,))
    names = ("replicate", "shard")
    return init_device_mesh(device.type, (world_size // shard_group, shard_group), mesh_dim_names=names)


def shard_model(model: PreTrainedModel, mesh: DeviceMesh, dtype: str, placement: RetrainingConfig) -> None:
    """Shard the parameters of `model` over `mesh`, in place; compute in `dtype`, reduce gradients in float32.

    In this order: activation checkpointing wraps the blocks, each block is compiled, then sharded; the root takes the
    rest. The root's own weights, embeddings and head, stay gathered from the forward to the backward pass.
    """
    blocks = find_blocks(model)
    trained = any(parameter.requires_grad for parameter in model.parameters())
    share = float(placement.activation_checkpointing) if trained else 0.0
    for index, block in enumerate(blocks):
        if int((index + 1) * share) > int(index * share):  # spread evenly
            blocks[index] = checkpoint_wrapper(block)
    if mesh.device_type == "cuda" if placement.compile is None else placement.compile:
        torch._dynamo.config.recompile_limit = COMPILED_FORMS
        for block in blocks:
            block.compile()
    attach(model, METHODS)
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[dtype], reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy() if placement.cpu_offload and mesh.device_type == "cuda" else OffloadPolicy()
    reshard = not gathers_once(model, mesh, dtype)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False, offload_policy=offload)
    for method in METHODS:
        register_fsdp_forward_method(model, method.__name__)


def gathers_once(model: PreTrainedModel, mesh: DeviceMesh, dtype: str) -> bool:
    """Whether the gathered parameters of the whole model fit beside the rest of a step on every worker, so that each is
    gathered once per step. A collective; the answer is the same before and after sharding. One worker gathers too: into
    memory beside its shards."""
    needed = sum(parameter.numel() for parameter in model.parameters()) * DTYPES[dtype].itemsize
    if mesh.device_type == "cuda":
        fits = torch.tensor(float(needed < RESIDENT_SHARE * torch.cuda.mem_get_info()[1]), device="cuda")
        dist.all_reduce(fits, dist.ReduceOp.MIN)  # workers that disagree would wait for one another for ever
        return bool(fits)
    return True
