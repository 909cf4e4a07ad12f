"""The second derivatives of a layer's squared error, as methods invert them."""

import torch


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """2 X Xᵀ with damping, [inputs, inputs], fp64.

    The diagonal of an input that is always zero becomes 1, so that it has nothing to do with the others.

    Args:
        hessian: 2 X Xᵀ in any scale, [inputs, inputs], fp64.
        damping: share of the mean of its diagonal that is added to it.
    """
    hessian = hessian.clone()
    hessian.diagonal()[dead_inputs(hessian)] = 1
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    return hessian


def damped_inverse(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """C, the inverse of `damped`."""
    return inverted(damped(hessian, damping))


def inverted(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of a positive definite matrix."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def dead_inputs(hessian: torch.Tensor) -> torch.Tensor:
    """Which inputs are always zero, [inputs]."""
    return hessian.diagonal() == 0
