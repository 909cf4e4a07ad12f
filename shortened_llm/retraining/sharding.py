"""Turn a model into its FSDP2 form: the one function, at world size 1 too."""

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from shortened_llm.models.blocks import find_blocks
from shortened_llm.models.head import attach_sequence_nll
from shortened_llm.models.load import DTYPES

# Gathered parameters may stay between forward and backward while they take less than this share of the memory.
RESIDENT_SHARE = 0.2


def shard_model(model: PreTrainedModel, mesh: DeviceMesh, dtype: str, *, activation_checkpointing: bool) -> None:
    """Shard the float32 parameters of `model` over `mesh`, in place; compute in `dtype`, reduce gradients in float32.

    In this order: activation checkpointing wraps the blocks, each block is sharded, the root takes the rest.
    """
    blocks = find_blocks(model)
    if activation_checkpointing:
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
    attach_sequence_nll(model)
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[dtype], reduce_dtype=torch.float32)
    reshard = mesh.size() > 1 and not _fits(model, mesh, DTYPES[dtype])
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "sequence_nll")


def _fits(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> bool:
    """Whether the gathered parameters of the whole model fit beside the rest."""
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if mesh.device_type == "cuda":
        return needed < RESIDENT_SHARE * torch.cuda.mem_get_info()[1]
    return True
