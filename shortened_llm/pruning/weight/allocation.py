"""How much of each block's weights goes: blocks whose spectra have heavy tails are well trained, and lose less."""

from collections.abc import Sequence
from typing import Literal

import torch

MOST = 0.95
"""The largest share of a block's weights that goes."""


def tail_exponent(eigenvalues: torch.Tensor, number: int) -> float:
    """Hill's estimate of the exponent a of a density λ^−a in the tail, from the largest so many of the eigenvalues.

    α = 1 + k / Σ ln(λ_{n−i+1} / λ_{n−k}) over i = 1 … k. Source: Hill, Annals of Statistics 3, 1975.

    Args:
        eigenvalues: ascending, [n], above 0.
        number: k, less than n.
    """
    tail, edge = eigenvalues[len(eigenvalues) - number :], eigenvalues[len(eigenvalues) - number - 1]
    return 1 + number / float((tail / edge).log().sum())


def spectral_exponent(weight: torch.Tensor, estimator: Literal["mid", "peak"]) -> float:
    """The exponent of the tail of the squares of a matrix's singular values.

    Args:
        weight: [outputs, inputs].
        estimator: mid: the upper half is the tail. peak: of the values near the mode of the histogram of log λ, the one
            from which on a power law fits best, by the distance of Kolmogorov and Smirnov. Source: AlphaPruning, arXiv
            2410.10912, section 3, and the code of its authors' earlier work, which names the two so.
    """
    values = torch.linalg.svdvals(weight.double()).square().flip(0)
    values = values[values > 1e-12 * values[-1]]
    if estimator == "mid":
        return tail_exponent(values, len(values) // 2)
    counts, edges = torch.histogram(values.log10(), bins=100)
    peak = int(counts.argmax())
    low, high = 0.95 * 10 ** float(edges[peak]), 1.5 * 10 ** float(edges[peak + 1])
    candidates = [index for index in range(len(values) - 1) if low < values[index] < high]
    fits = [(_distance(values[index:]), index) for index in candidates or [len(values) // 2]]
    _, best = min(fits)
    return tail_exponent(values, len(values) - best - 1)


def _distance(tail: torch.Tensor) -> float:
    """The largest distance between the distribution of a tail and of the power law that fits it."""
    exponent = tail_exponent(tail, len(tail) - 1)
    law = 1 - (tail / tail[0]) ** (1 - exponent)
    return float((law - torch.arange(len(tail)) / len(tail)).abs().max())


def allocated(qualities: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float) -> tuple[float, ...]:
    """The share of each block's weights that goes, so that `sparsity` of all do: the larger its quality, the more.

    r_b = (1 − ε) + (q_b − q_min) / (q_max − q_min) · 2ε, and s_b in proportion to r_b; what is above 0.95 is cut, and
    poured over the other blocks. Source: AlphaPruning, arXiv 2410.10912, section 3.

    Args:
        qualities: q, the mean exponent of each block's matrices.
        sizes: weights (count) of each block.
        spread: ε, 0 for equal shares.
    """
    low, high, total = min(qualities), max(qualities), sum(sizes)
    shares = [(1 - spread) + ((q - low) / (high - low) if high > low else 0.5) * 2 * spread for q in qualities]
    found = [0.0] * len(sizes)
    free, left = set(range(len(sizes))), sparsity * total
    while free:
        factor = left / sum(sizes[block] * shares[block] for block in free)
        over = {block for block in free if factor * shares[block] > MOST}
        for block in over or free:
            found[block] = MOST if over else factor * shares[block]
        left -= sum(found[block] * sizes[block] for block in over)
        free = free - over if over else set()
    return tuple(found)
