"""SparseGPT: column after column, weights go and those behind make up for them."""

import torch

from shortened_llm.pruning.weight.hessian import damped_inverse, dead_inputs
from shortened_llm.pruning.weight.pattern import Pattern


def sparsegpt(
    weight: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, *, damping: float, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pruned weight and the mask, True where a weight stays.

    With H the damped Hessian and U the upper Cholesky factor of H⁻¹, columns are passed in their order. Of a block of
    columns those weights go whose W² / U_jj² are lowest, over all rows together; of a pattern N:M the lowest of each
    group, chosen when the first of its columns is reached. The error (w − q) / U_jj of a column, times its row of U, is
    taken from the columns behind it. Source: SparseGPT, arXiv 2301.00774, section 3.

    Args:
        weight: [outputs, inputs], fp64.
        hessian: 2 X Xᵀ of its inputs, in any scale, [inputs, inputs], fp64.
        damping: share of the mean of the diagonal that is added to it.
        block_size: columns (count) of a block.
    """
    return _swept(weight, hessian, pattern, None, damping=damping, block_size=block_size)


def swept_update(weight: torch.Tensor, kept: torch.Tensor, hessian: torch.Tensor, *, damping: float) -> torch.Tensor:
    """What SparseGPT makes of the weights that stay when the mask is given; see `sparsegpt`.

    Args:
        kept: the mask, [outputs, inputs].
    """
    return _swept(weight, hessian, None, kept, damping=damping, block_size=128)[0]


def _swept(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    pattern: Pattern | None,
    mask: torch.Tensor | None,
    *,
    damping: float,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """With a mask that is given, or chosen by a pattern on the way."""
    weight, columns = weight.clone(), weight.shape[1]
    weight[:, dead_inputs(hessian)] = 0
    upper = torch.linalg.cholesky(damped_inverse(hessian, damping), upper=True)
    diagonal = upper.diagonal()
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    group_size = pattern.of if pattern else None
    if group_size is not None:
        block_size = max(1, block_size // group_size) * group_size
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.zeros_like(weight[:, start:stop])
        if pattern and group_size is None:
            kept[:, start:stop] = pattern.lowest((weight[:, start:stop] / diagonal[start:stop]).square())
        for column in range(start, stop):
            if pattern and group_size is not None and column % group_size == 0:
                group = slice(column, column + group_size)
                kept[:, group] = pattern.lowest_in_rows((weight[:, group] / diagonal[group]).square())
            error = weight[:, column] * ~kept[:, column] / diagonal[column]
            weight[:, column:stop] -= torch.outer(error, upper[column, column:stop])
            weight[:, column] *= kept[:, column]  # what goes is zero to the last bit
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight, kept
