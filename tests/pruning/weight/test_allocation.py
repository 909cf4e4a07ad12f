"""Exponents of known tails, and shares that sum up to what was asked."""

from typing import get_args

import numpy as np
import pytest
import torch

from shortened_llm.pruning.weight.allocation import MOST, allocated
from shortened_llm.pruning.weight.alpha import Estimator, alpha_shares, spectral_exponent, tail_exponent
from shortened_llm.pruning.weight.owl import outliers, owl_shares


@pytest.mark.parametrize(("exponent", "tolerance"), [(2.0, 0.02), (3.0, 0.03), (5.0, 0.1)])
def test_the_exponent_of_a_power_law_is_found(exponent: float, tolerance: float) -> None:
    """Quantiles of a density λ^−a."""
    places = (np.arange(4000) + 0.5) / 4000
    values = torch.from_numpy((1 - places) ** (-1 / (exponent - 1)))
    assert tail_exponent(values, 2000) == pytest.approx(exponent, abs=tolerance)


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_the_exponent_is_one_of_the_spectrum_alone(estimator: Estimator) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((60, 90), generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn((60, 60), generator=generator, dtype=torch.float64))[0] @ weight
    alpha = spectral_exponent(weight, estimator)
    for other in (7 * weight, turned, weight.T):
        assert spectral_exponent(other, estimator) == pytest.approx(alpha, rel=1e-6)


def test_a_heavy_tail_has_a_small_exponent() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn((80, 80), generator=generator, dtype=torch.float64))[0] for _ in "ab")
    heavy, light = (
        spectral_exponent(left @ torch.diag(torch.arange(1, 81).double() ** -power) @ right, "mid")
        for power in (2.0, 0.25)
    )
    assert 1 < heavy < light


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("spread", [0.0, 0.2, 0.5, 0.9])
def test_shares_make_up_what_was_asked(sparsity: float, spread: float) -> None:
    qualities, sizes = [2.0, 3.5, 2.5, 6.0, 4.0], [100, 300, 200, 100, 150]
    found = allocated(alpha_shares(qualities, spread), sizes, sparsity)
    assert sum(s * n for s, n in zip(found, sizes, strict=True)) / sum(sizes) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= share <= MOST for share in found)
    order = np.argsort(qualities)
    assert (np.diff(np.array(found)[order]) >= -1e-12).all()
    if spread == 0:
        assert found == pytest.approx([sparsity] * 5)


def test_equal_blocks_lose_equal_shares() -> None:
    assert allocated(alpha_shares([3.0, 3.0, 3.0], 0.3), [10, 20, 30], 0.6) == pytest.approx([0.6, 0.6, 0.6])
    assert allocated(owl_shares([0.1, 0.1, 0.1], [10, 20, 30], 0.6, 0.3), [10, 20, 30], 0.6) == pytest.approx([0.6] * 3)


@pytest.mark.parametrize("sparsity", [0.02, 0.5, 0.93, 0.97])
def test_the_more_weights_stand_out_the_fewer_go(sparsity: float) -> None:
    found, sizes = [0.02, 0.05, 0.01, 0.03], [100, 300, 200, 100]
    shares = allocated(owl_shares(found, sizes, sparsity, 0.08), sizes, sparsity)
    assert sum(s * n for s, n in zip(shares, sizes, strict=True)) / sum(sizes) == pytest.approx(sparsity, abs=1e-12)
    assert (np.diff(np.array(shares)[np.argsort(found)]) <= 1e-12).all()
    if sparsity == 0.5:
        assert max(shares) - min(shares) == pytest.approx(0.16)


def test_weights_stand_out_of_their_block() -> None:
    """Five times the mean of all its matrices together."""
    scores = [torch.ones(90), torch.tensor([1.0] * 8 + [7.0, 31.0])]
    assert outliers(scores, 5.0) == 0.02
    assert outliers(scores, 6.0) == 0.01


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_matrices_without_a_tail_have_no_exponent(estimator: Estimator) -> None:
    ones = torch.ones((5, 7))
    for weight in (torch.zeros((5, 7)), ones, torch.eye(6)):
        assert spectral_exponent(weight, estimator) is None


def test_the_public_estimator_is_its_formula() -> None:
    """Of the tails that begin above the logarithm of .95 of the mode, up to 1.5 times it, the one that fits best."""
    scales = torch.diag(torch.linspace(0.2, 3, 90).double())
    weight = torch.randn((60, 90), generator=torch.Generator().manual_seed(3), dtype=torch.float64) @ scales
    values = np.sort(np.linalg.svd(weight.numpy(), compute_uv=False) ** 2)
    logs = np.log10(values)
    counts, _ = np.histogram(logs, bins=100, range=(logs[0], logs[-1]))
    mode = 10 ** np.linspace(logs[0], logs[-1], 100)[counts.argmax()]
    found = []
    for start in range(len(values) - 1):
        if np.log10(0.95 * mode) < values[start] < 1.5 * mode:
            tail = values[start:]
            exponent = 1 + len(tail) / np.log(tail / tail[0]).sum()
            law = 1 - (tail / tail[0]) ** (1 - exponent)
            found.append((np.abs(law - np.arange(len(tail)) / len(tail)).max(), exponent))
    assert spectral_exponent(weight, "public") == pytest.approx(min(found)[1], rel=1e-6)
