"""The best weights of a layer that has lost some of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The weights of a layer on its kept inputs."""

    weight: torch.Tensor
    """[outputs, kept inputs]."""
    damping: float | None
    """What was chosen; None: the weights as they were."""


def refit(
    weight: torch.Tensor,
    kept: torch.Tensor,
    *,
    seen: torch.Tensor,
    held_out: torch.Tensor,
    every: torch.Tensor,
    dampings: Sequence[float],
) -> Fit:
    """The weights on the kept inputs with which a layer computes most nearly what it did on all.

    With W [outputs, inputs], A the mean of x xᵀ over tokens, K the kept and P the removed inputs, and m the mean of the
    diagonal of A_KK, W_:,K + W_:,P A_PK (A_KK + d m I)⁻¹ minimises the mean of ‖Ŵ x_K − W x‖² + d m ‖Ŵ − W_:,K‖².
    Damping draws the weights to what they were: drawn to zero, they would lose what they do in directions of small
    variance. At small calibration d decides between a gain and a ruin: each is tried on tokens that were held
    out, beside the weights as they were, and what is best there is fitted to all tokens. Source: the reformation of
    Search for Efficient LLMs, arXiv 2409.17372, whose iterations begin with the weights as they were.

    Args:
        weight: [outputs, inputs].
        kept: their indices, ascending.
        seen: A [inputs, inputs] of some tokens.
        held_out: A of others.
        every: A of all tokens.
        dampings: values of d, above 0.
    """
    plain = weight[:, kept]
    errors = {d: error(weight, kept, fitted(weight, kept, seen, d), held_out) for d in dampings}
    best = min(errors, key=errors.__getitem__)
    if errors[best] >= error(weight, kept, plain, held_out):
        return Fit(weight=plain, damping=None)
    return Fit(weight=fitted(weight, kept, every, best), damping=best)


def fitted(weight: torch.Tensor, kept: torch.Tensor, gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The closed form, [outputs, kept inputs]; see `refit`."""
    removed = (
        torch.ones(len(gram), dtype=torch.bool, device=gram.device).index_fill_(0, kept, False).nonzero().flatten()
    )
    among = gram[kept][:, kept].clone()
    among.diagonal().add_(damping * among.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny))
    carried = gram[kept][:, removed] @ weight[:, removed].T
    return weight[:, kept] + torch.cholesky_solve(carried, torch.linalg.cholesky(among)).T


def error(weight: torch.Tensor, kept: torch.Tensor, narrow: torch.Tensor, gram: torch.Tensor) -> float:
    """Mean over tokens of ‖narrow x_K − weight x‖²."""
    difference = weight.clone()
    difference[:, kept] -= narrow
    return float((difference @ gram * difference).sum())
