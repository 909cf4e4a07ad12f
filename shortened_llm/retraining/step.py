"""One optimiser step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from shortened_llm.data.batches import MicroBatch
from shortened_llm.models.shards import device_of, whole_tensor
from shortened_llm.records import Recipe
from shortened_llm.retraining.distillation import Teacher
from shortened_llm.retraining.zeros import HeldZeros


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What a step found, left on the device, so that nothing waits for it."""

    loss: torch.Tensor
    """This worker's part of the summed loss, nats."""
    gradient_norm: torch.Tensor
    """Global, before clipping."""
    skipped: torch.Tensor
    """1.0 where the gradient was not finite, so that the weights stayed as they were; else 0.0. Equal on all
    workers."""


def make_optimizer(model: PreTrainedModel, recipe: Recipe) -> Optimizer:
    """AdamW on what is trained; weights of two or more dimensions decay, norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def train_step(
    model: PreTrainedModel,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    recipe: Recipe,
    *,
    place: Callable[[MicroBatch], MicroBatch],
    num_predictions: int,
    world_size: int,
    teacher: Teacher | None,
    gathers_once: bool,
    zeros: HeldZeros,
) -> StepOutcome:
    """Forward, backward and update on this worker's part of the global batch.

    An update whose gradient is not finite is left out on the device, optimiser state included.

    Args:
        model: sharded by `sharding.shard_model`.
        micro_batches: as many on every worker.
        place: puts one on the model's device, when its turn comes: masks that keep documents apart are large.
        num_predictions: predicted tokens of the global batch, over all workers: the loss is their mean, however they
            are spread.
        gathers_once: whether weights stay gathered over the micro-batches: see `sharding.gathers_once`.
        zeros: weights that stay zero.
    """
    total = torch.zeros((), device=device_of(model))
    for index, batch in enumerate(map(place, micro_batches)):
        # Gradients travel once per step: with the last micro-batch.
        last = index == len(micro_batches) - 1
        model.set_requires_gradient_sync(last)
        if gathers_once:  # the weights are the same until the update
            model.set_reshard_after_backward(last)
        # Dropout is a function of seed and position, so that a resumed run draws what it would have drawn.
        torch.manual_seed(((recipe.seed << 40) + batch.first_position) % 2**63)
        chunk_loss = teacher.chunk_loss(batch.input_ids, batch.documents) if teacher else None
        loss = model.training_loss(batch.input_ids, batch.labels, batch.documents, chunk_loss=chunk_loss)
        # FSDP averages gradients over the workers; the loss is a sum over them.
        (loss * (world_size / max(1, num_predictions))).backward()
        total += loss.detach()
    zeros.mask_gradients()
    norm = clip_gradients(model.parameters(), recipe.max_gradient_norm)
    skipped = (~torch.isfinite(norm)).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # the fused kernel reads it on the device
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepOutcome(loss=total, gradient_norm=norm, skipped=skipped)


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale gradients down to a global norm; returns the norm before, as a plain scalar tensor."""
    return whole_tensor(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
