"""Weights that pruning set to zero stay zero: they have no gradient, so the optimiser never moves them."""

from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from shortened_llm.models.shards import plain_name
from shortened_llm.records import ModelRef, WeightsTransform, of_kind


def holds_zeros(ref: ModelRef) -> bool:
    """Whether single weights of a model were pruned."""
    return of_kind(ref.transforms, WeightsTransform) is not None


@dataclass(frozen=True, slots=True)
class HeldZeros:
    """Trained parameters with zeros, and where these are not in this process's part of each."""

    masks: tuple[tuple[torch.nn.Parameter, torch.Tensor], ...]

    @classmethod
    def of(cls, model: PreTrainedModel, ref: ModelRef) -> "HeldZeros":
        """Those of a model that has just been loaded, sharded or not; none unless single weights were pruned."""
        weights = of_kind(ref.transforms, WeightsTransform)
        ends = tuple(f".{layer}.weight" for layer in (weights.layers if weights else ()))
        return cls(
            tuple(
                (parameter, _local(parameter.detach()) != 0)
                for name, parameter in model.named_parameters()
                if ends and parameter.requires_grad and plain_name(name).endswith(ends)
            )
        )

    def mask_gradients(self) -> None:
        """Set the gradients of zeros to zero: their moments stay zero too, and weight decay leaves zero as it is."""
        for parameter, mask in self.masks:
            if parameter.grad is not None:
                _local(parameter.grad).mul_(mask)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
