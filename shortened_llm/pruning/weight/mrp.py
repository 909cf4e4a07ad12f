"""MRP: what goes is chosen by what it costs once the weights that stay have made up for it."""

from collections.abc import Iterator
from itertools import combinations
from typing import Literal

import torch

from shortened_llm.pruning.weight.hessian import damped_inverse, dead_inputs
from shortened_llm.pruning.weight.joint import joint_update
from shortened_llm.pruning.weight.pattern import Pattern
from shortened_llm.pruning.weight.sparsegpt import swept_update

MOST_BYTES = 2**28
"""The most that the costs of the choices of some groups take."""


def mrp(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    pattern: Pattern,
    *,
    mask: Literal["single", "joint"],
    update: Literal["single", "joint"] | None,
    damping: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask, True where a weight stays; see `MrpOptions`.

    Args:
        weight: [outputs, inputs], fp64.
        hessian: 2 X Xᵀ of its inputs, in any scale, [inputs, inputs], fp64.
        update: None: weights that stay are those that are given.
    """
    weight = weight.masked_fill(dead_inputs(hessian), 0)
    inverse = damped_inverse(hessian, damping)
    if mask == "joint":
        kept = jointly_cheapest(weight, inverse, pattern)
    else:
        kept = pattern.lowest_in_rows(weight.square() / inverse.diagonal())
    if update is None:
        return weight * kept, kept
    change = joint_update if update == "joint" else swept_update
    return change(weight, kept, hessian, damping=damping), kept


def jointly_cheapest(weight: torch.Tensor, inverse: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The mask of a pattern N:M for which each group loses the set P that costs least, ½ w_P (C_PP)⁻¹ w_Pᵀ.

    Args:
        weight: [outputs, inputs].
        inverse: C, [inputs, inputs].
    """
    assert pattern.of is not None, "without groups there are too many choices"
    assert pattern.kept is not None
    choices = torch.tensor(list(combinations(range(pattern.of), pattern.of - pattern.kept)), device=weight.device)
    kept = torch.ones_like(weight, dtype=torch.bool)
    for start, costs in _costs(weight, inverse, choices, pattern.of):
        for index, best in enumerate(choices[costs.argmin(dim=2)].unbind(dim=1)):
            kept.scatter_(1, start + index * pattern.of + best, False)
    return kept


def _costs(
    weight: torch.Tensor, inverse: torch.Tensor, choices: torch.Tensor, size: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """The first column of some groups, and twice what each choice costs, [outputs, groups, choices]."""
    starts = torch.arange(0, weight.shape[1], size, device=weight.device)
    each = weight.shape[0] * choices.numel() * weight.element_size()
    for some in starts.split(max(1, MOST_BYTES // (3 * each))):
        places = some[:, None, None] + choices  # [groups, choices, |P|]
        systems = torch.linalg.inv(inverse[places[..., :, None], places[..., None, :]])
        lost = weight[:, places]  # [outputs, groups, choices, |P|]
        yield int(some[0]), (torch.einsum("ogcp,gcpq->ogcq", lost, systems) * lost).sum(dim=3)
