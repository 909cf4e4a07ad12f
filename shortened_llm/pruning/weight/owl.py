"""OWL: blocks with more weights that stand out lose less."""

from collections.abc import Iterable, Sequence

import torch


def outliers(scores: Iterable[torch.Tensor], multiple: float) -> float:
    """The share of a block's weights whose |weight| x norm of its input is above a multiple of their mean.

    Source: OWL, arXiv 2310.05175, section 3.

    Args:
        scores: of each matrix, of any shape.
    """
    flat = torch.cat([score.flatten() for score in scores])
    return float((flat > multiple * flat.mean()).double().mean())


def owl_shares(found: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float) -> tuple[float, ...]:
    """The share of each block's weights that goes: the more of them stand out, the less.

    With d_b = (D_b − D_min) / (D_max − D_min) · 2λ, s_b = s + mean d − d_b.

    Args:
        found: D, the share of each block's weights that stand out.
        sizes: weights (count) of each block, by which the mean is weighted.
        sparsity: s, of all.
        spread: λ.
    """
    low, high = min(found), max(found)
    raised = [(own - low) / (high - low) * 2 * spread if high > low else 0.0 for own in found]
    mean = sum(own * size for own, size in zip(raised, sizes, strict=True)) / sum(sizes)
    return tuple(max(0.0, sparsity + mean - own) for own in raised)
