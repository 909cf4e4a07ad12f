"""The best that the weights that stay can do for those that go, of each output together."""

from collections.abc import Iterator

import torch

from shortened_llm.models.cpu import map_in_threads
from shortened_llm.pruning.weight.hessian import damped, inverted

MOST_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""The most that the systems that are solved at a time take: a processor's cache, or enough to fill a GPU."""


def joint_update(weight: torch.Tensor, kept: torch.Tensor, hessian: torch.Tensor, *, damping: float) -> torch.Tensor:
    """The weights with zeros outside the mask whose outputs are nearest to those of all weights.

    With H the damped Hessian, C = H⁻¹, and P what a row loses and K what it keeps, w − w_P (C_PP)⁻¹ C_P,: minimises the
    loss ½ δw H δwᵀ under δw_P = −w_P; it is (H_KK)⁻¹ (H w)_K on K. Each row takes the smaller system. Rows have nothing
    to do with one another, and many of like size are solved at a time. Source: MRP, arXiv 2410.15567, section 3, after
    the optimal brain surgeon.

    Args:
        weight: [outputs, inputs], fp64.
        kept: the mask, True where a weight stays, [outputs, inputs].
        hessian: 2 X Xᵀ of the inputs, in any scale, [inputs, inputs], fp64.
        damping: share of the mean of its diagonal that is added to it.
    """
    matrix = damped(hessian, damping)
    inverse = inverted(matrix)
    by_removed = 2 * (~kept).sum(dim=1) <= kept.shape[1]
    found = torch.empty_like(weight)
    own = weight[by_removed]
    found[by_removed] = own - _solved(inverse, ~kept[by_removed], own) @ inverse
    found[~by_removed] = _solved(matrix, kept[~by_removed], weight[~by_removed] @ matrix)
    return found * kept  # to the last bit


def _solved(matrix: torch.Tensor, places: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """For each row with the places P, x with matrix_PP x_P = wanted_P and zeros elsewhere.

    Args:
        matrix: [inputs, inputs].
        places: P, [rows, inputs].
        wanted: [rows, inputs].
    """

    def solve(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows, _solved_together(matrix, places[rows], wanted[rows])

    solution = torch.zeros_like(wanted)
    # On CPU a thread solves systems of its own: several gain little from one, and wait long for one another.
    spread = map_in_threads if matrix.device.type == "cpu" else map
    for rows, found in spread(solve, _of_like_size(places)):
        solution[rows] = found
    return solution


def _of_like_size(places: torch.Tensor) -> Iterator[torch.Tensor]:
    """Indices of the rows that have any places, those with the most first, as many as memory allows."""
    numbers = places.sum(dim=1)
    order, sizes = numbers.argsort(descending=True, stable=True), sorted(numbers.tolist(), reverse=True)
    start, end = 0, sum(size > 0 for size in sizes)
    while start < end:
        number = max(1, MOST_BYTES[places.device.type] // (8 * sizes[start] ** 2))
        yield order[start : min(start + number, end)]
        start += number


def _solved_together(matrix: torch.Tensor, places: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """What `_solved` finds, of rows with about as many places."""
    most = int(places.sum(dim=1).max())
    # Rows with fewer places are filled up with others, whose equations are 1 x = 0.
    order = (~places).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    own = places.gather(1, order)
    systems = matrix[order[:, :, None], order[:, None, :]]
    if not own.all():
        both = own[:, :, None] & own[:, None, :]
        systems = torch.where(both, systems, torch.eye(most, dtype=matrix.dtype, device=matrix.device))
    right = (wanted.gather(1, order) * own)[:, :, None]
    solution = torch.cholesky_solve(right, torch.linalg.cholesky(systems))[:, :, 0]
    return torch.zeros_like(wanted).scatter_(1, order, solution)
