"""AlphaPruning: blocks whose spectra have heavy tails are well trained, and lose less."""

import math
from collections.abc import Sequence
from typing import Literal

import torch

Estimator = Literal["mid", "peak", "public"]
BINS = 100
"""The histogram of a spectrum has so many."""


def tail_exponent(eigenvalues: torch.Tensor, number: int) -> float:
    """Hill's estimate of the exponent a of a density λ^−a in the tail, from the largest so many of the eigenvalues.

    α = 1 + k / Σ ln(λ_{n−i+1} / λ_{n−k}) over i = 1 … k. Source: Hill, Annals of Statistics 3, 1975.

    Args:
        eigenvalues: ascending, [n], above 0.
        number: k, less than n.
    """
    tail, edge = eigenvalues[len(eigenvalues) - number :], eigenvalues[len(eigenvalues) - number - 1]
    return 1 + number / float((tail / edge).log().sum())


def spectral_exponent(weight: torch.Tensor, estimator: Estimator) -> float | None:
    """The exponent of the tail of the squares of a matrix's singular values; None where they have no tail.

    Args:
        weight: [outputs, inputs].
        estimator: mid: the upper half is the tail. peak: of the values near the mode of the histogram of log λ, the one
            from which on a power law fits best, by the distance of Kolmogorov and Smirnov. Source: AlphaPruning, arXiv
            2410.10912, section 3, and the code of its authors' earlier work, which names the two so. public: likewise,
            but a tail may begin above the logarithm of peak's lower bound, and its first value is counted as one more,
            as in that code.
    """
    narrow = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    # As exact here as singular values, in an eighth of the time. Of the many small steps below none is for a GPU.
    values = torch.linalg.eigvalsh(narrow @ narrow.T).cpu()
    values = values[values > 1e-12 * values[-1]]
    if len(values) < 2 or values[0] > values[-1] * (1 - 1e-9):
        return None
    if estimator == "mid":
        return tail_exponent(values, len(values) // 2)
    logs = values.log10()
    low, high = float(logs[0]), float(logs[-1])
    peak = int(torch.histc(logs, bins=BINS, min=low, max=high).argmax())
    if estimator == "public":
        mode = 10 ** float(torch.linspace(low, high, BINS, dtype=values.dtype)[peak])
        first, last = math.log10(0.95 * mode), 1.5 * mode
    else:
        width = (high - low) / BINS
        first, last = 0.95 * 10 ** (low + width * peak), 1.5 * 10 ** (low + width * (peak + 1))
    starts = [index for index in range(len(values) - 1) if first < values[index] < last and values[index] < values[-1]]
    more = 1 if estimator == "public" else 0
    _, exponent = min(_fitted(values[start:], more) for start in starts or [len(values) // 2 - 1])
    return exponent


def _fitted(tail: torch.Tensor, more: int) -> tuple[float, float]:
    """The largest distance between the distribution of a tail and of the power law that fits it, and its exponent."""
    number = len(tail) - 1
    exponent = 1 + (tail_exponent(tail, number) - 1) * (number + more) / number
    law = 1 - (tail / tail[0]) ** (1 - exponent)
    return float((law - torch.arange(len(tail)) / len(tail)).abs().max()), exponent


def alpha_shares(exponents: Sequence[float], spread: float) -> tuple[float, ...]:
    """The share of each block's weights that goes, in proportion: the larger its exponent, the more.

    r_b = (1 − ε) + (q_b − q_min) / (q_max − q_min) · 2ε. Source: AlphaPruning, arXiv 2410.10912, section 3.

    Args:
        exponents: q, the mean of each block's matrices.
        spread: ε, 0 for equal shares.
    """
    low, high = min(exponents), max(exponents)
    return tuple(1 - spread + ((q - low) / (high - low) if high > low else 0.5) * 2 * spread for q in exponents)
