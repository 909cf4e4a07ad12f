"""DSnoT: weights come back and others go, until what goes changes the mean of an output by little."""

from typing import Literal

import torch

from shortened_llm.pruning.weight.pattern import Pattern

SMALLEST = 1e-30
"""No power of a variance counts for less: far below any, and far from overflow."""


def dsnot(
    weight: torch.Tensor,
    kept: torch.Tensor,
    pattern: Pattern,
    *,
    means: torch.Tensor,
    variances: torch.Tensor,
    norms: torch.Tensor,
    cycles: int,
    threshold: float,
    power: float,
    accept: Literal["improving", "always"],
) -> torch.Tensor:
    """A mask with as many weights in each row, or group of a pattern N:M.

    With E = Σ w_j x̄_j over what a row loses, and while |E| is above the threshold: the weight comes back whose
    sign(E) w_j x̄_j / var_j^p is largest; of those whose loss draws E to zero, the one goes whose |w_j| ‖X_j‖ is
    smallest, or in a pattern N:M the smallest of the group. An input is exchanged once at most. Source: DSnoT, arXiv
    2310.08915, section 3.

    Args:
        weight: [outputs, inputs], fp64.
        kept: the mask, True where a weight stays, [outputs, inputs].
        means: x̄, the mean over sequences of the sum over their tokens, [inputs].
        variances: the mean of the variances within the sequences, [inputs].
        norms: Euclidean norms over tokens, in any scale, [inputs].
        cycles: exchanges (count) of a row, at most.
        threshold: of |E|.
        power: p.
        accept: whether a row ends at the first exchange that would not bring E nearer to zero.
    """
    kept, free = kept.clone(), torch.ones_like(kept)
    moves = weight * means
    # An input without variance comes back first; one that is always zero moves nothing.
    growth, size = moves / (variances**power).clamp(min=SMALLEST), weight.abs() * norms
    error = (moves * ~kept).sum(dim=1)
    rows = (error.abs() > threshold).nonzero().flatten()
    for _ in range(cycles):
        if not len(rows):
            break
        own, sign = error[rows], error[rows].sign()[:, None]
        may_grow = ~kept[rows] & free[rows]
        grown = (sign * growth[rows]).where(may_grow, -torch.inf).argmax(dim=1)
        may_go = kept[rows] & free[rows]
        may_go &= _group_of(grown, pattern.of, kept.shape[1]) if pattern.of is not None else sign * moves[rows] < 0
        gone = size[rows].where(may_go, torch.inf).argmin(dim=1)
        new = own - moves[rows, grown] + moves[rows, gone]
        going_on = may_grow.gather(1, grown[:, None])[:, 0] & may_go.gather(1, gone[:, None])[:, 0]
        if accept == "improving":
            going_on &= new.abs() < own.abs()
        rows, grown, gone, new = rows[going_on], grown[going_on], gone[going_on], new[going_on]
        kept[rows, grown], kept[rows, gone] = True, False
        free[rows, grown], free[rows, gone] = False, False
        error[rows] = new
        rows = rows[new.abs() > threshold]
    return kept


def _group_of(places: torch.Tensor, size: int, columns: int) -> torch.Tensor:
    """The columns of the group that a place of each row lies in, [rows, columns]."""
    return torch.arange(columns, device=places.device) // size == (places // size)[:, None]
