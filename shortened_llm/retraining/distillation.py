"""Distillation: the loss of a pruned model against the dense model's predictions, chunk by chunk."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from shortened_llm.models.head import IGNORE, ChunkLoss, Documents, head_logits, nll
from shortened_llm.records import DistillOptions


class Teacher:
    """The dense model, frozen; only its hidden states are ever whole, and only of one micro-batch."""

    def __init__(self, model: PreTrainedModel, options: DistillOptions) -> None:
        """`model` is sharded by `sharding.shard_model`, whose root keeps the head gathered between calls."""
        self.model, self._options = model, options

    def chunk_loss(self, input_ids: torch.Tensor, documents: Documents) -> Callable[[slice], ChunkLoss]:
        """The loss of a micro-batch, tokens [batch, seq], for `head.training_loss`.

        The teacher keeps documents apart as the student does: it is the same family.
        """
        with torch.no_grad():
            hidden = self.model.final_hidden(input_ids, documents).flatten(0, 1)
        return lambda places: self._loss(hidden[places])

    def _loss(self, hidden: torch.Tensor) -> ChunkLoss:
        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = head_logits(self.model, hidden)
            return distillation_loss(logits, wanted, labels, self._options)

        return loss


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, options: DistillOptions
) -> torch.Tensor:
    """T^2 x KL(teacher || student) + hard_loss_weight x cross-entropy of each position, in nats (Hinton et al., 2015,
    arXiv 1503.02531).

    Args:
        logits: of the student, fp32 [positions, vocab].
        teacher_logits: fp32 [positions, vocab].
        labels: [positions]; 0 is returned where one is -100.
    """
    student = F.log_softmax(logits / options.temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / options.temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    loss = options.temperature**2 * divergence.masked_fill(labels == IGNORE, 0.0)
    return loss + options.hard_loss_weight * nll(logits, labels) if options.hard_loss_weight else loss
