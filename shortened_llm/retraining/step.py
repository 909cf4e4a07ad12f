"""One optimiser step."""

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from shortened_llm.config import CptConfig
from shortened_llm.models.head import next_token_labels


def make_optimizer(model: PreTrainedModel, config: CptConfig, learning_rate: float) -> Optimizer:
    """AdamW; weights of two or more dimensions decay, norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=config.betas, fused=True)


def train_step(
    model: PreTrainedModel,
    optimizer: Optimizer,
    micro_batches: Sequence[torch.Tensor],
    *,
    num_predictions: int,
    world_size: int,
    max_gradient_norm: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, backward and update on this worker's part of the global batch.

    Args:
        model: sharded by `sharding.shard_model`.
        micro_batches: token ids, each [sequences, length].
        num_predictions: predicted tokens of the global batch, over all workers: the loss is their mean, however they
            are spread.

    Returns:
        This worker's summed loss in nats, and the global gradient norm before clipping; both scalar tensors, so that
        nothing waits for the device.
    """
    total = torch.zeros((), device=micro_batches[0].device)
    for index, batch in enumerate(micro_batches):
        # Gradients travel once per step: with the last micro-batch.
        model.set_requires_gradient_sync(index == len(micro_batches) - 1)
        loss = model.sequence_nll(batch, next_token_labels(batch)).sum()
        # FSDP averages gradients over the workers; the loss is a sum over them.
        (loss * (world_size / num_predictions)).backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm.full_tensor() if isinstance(norm, DTensor) else norm
