"""The best that the weights that stay can do for those that go, of each output together."""

import torch

from shortened_llm.models.cpu import one_thread
from shortened_llm.pruning.weight.hessian import damped_inverse

MOST_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""The most that the systems that are solved at a time take: a processor's cache, or enough to fill a GPU."""


def joint_update(weight: torch.Tensor, kept: torch.Tensor, hessian: torch.Tensor, *, damping: float) -> torch.Tensor:
    """The weights with zeros outside the mask whose outputs are nearest to those of all weights.

    With H the damped Hessian, C = H⁻¹ and P what a row loses, w − w_P (C_PP)⁻¹ C_P,: minimises the loss ½ δw H δwᵀ
    under δw_P = −w_P. Rows have nothing to do with one another, and are solved many at a time. Source: MRP, arXiv
    2410.15567, section 3, after the optimal brain surgeon.

    Args:
        weight: [outputs, inputs], fp64.
        kept: the mask, True where a weight stays, [outputs, inputs].
        hessian: 2 X Xᵀ of the inputs, in any scale, [inputs, inputs], fp64.
        damping: share of the mean of its diagonal that is added to it.
    """
    inverse = damped_inverse(hessian, damping)
    most = int((~kept).sum(dim=1).max())
    if not most:
        return weight.clone()
    # The removed inputs of each row come first; rows that lose fewer are filled up with inputs that are not touched.
    order = kept.to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    is_removed = ~kept.gather(1, order)
    rows = max(1, MOST_BYTES[weight.device.type] // (most * most * weight.element_size()))
    parts = zip(weight.split(rows), order.split(rows), is_removed.split(rows), strict=True)
    with one_thread():
        found = torch.cat([_solved(own, places, removed, inverse) for own, places, removed in parts])
    return found * kept  # to the last bit


def _solved(weight: torch.Tensor, places: torch.Tensor, removed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Some rows.

    Args:
        weight: [rows, inputs].
        places: inputs that go, and others behind them, [rows, most].
        removed: which of these go, [rows, most].
        inverse: C, [inputs, inputs].
    """
    systems = inverse[places[:, :, None], places[:, None, :]]
    if not removed.all():
        both = removed[:, :, None] & removed[:, None, :]
        systems = torch.where(both, systems, torch.eye(places.shape[1], dtype=weight.dtype, device=weight.device))
    wanted = weight.gather(1, places) * removed
    solution = torch.cholesky_solve(wanted[:, :, None], torch.linalg.cholesky(systems))[:, :, 0]
    spread = torch.zeros_like(weight).scatter_(1, places, solution)
    return weight - spread @ inverse
