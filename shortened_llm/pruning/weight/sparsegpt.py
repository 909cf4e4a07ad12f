"""SparseGPT: column after column, weights go and those behind make up for them."""

import torch

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
    weight, hessian = weight.clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    kept = torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    if pattern.of is not None:
        block_size = max(1, block_size // pattern.of) * pattern.of
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.zeros_like(weight[:, start:stop])
        diagonal = upper.diagonal()
        if pattern.of is None:
            kept[:, start:stop] = pattern.lowest((weight[:, start:stop] / diagonal[start:stop]).square())
        for column in range(start, stop):
            if pattern.of is not None and column % pattern.of == 0:
                group = slice(column, column + pattern.of)
                kept[:, group] = pattern.lowest_in_rows((weight[:, group] / diagonal[group]).square())
            error = weight[:, column] * ~kept[:, column] / diagonal[column]
            weight[:, column:stop] -= torch.outer(error, upper[column, column:stop])
            weight[:, column] *= kept[:, column]  # what goes is zero to the last bit
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return weight, kept
