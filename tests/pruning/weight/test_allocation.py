"""Exponents of known tails, and shares that sum up to what was asked."""

import numpy as np
import pytest
import torch

from shortened_llm.pruning.weight.allocation import MOST, allocated, spectral_exponent, tail_exponent


@pytest.mark.parametrize(("exponent", "tolerance"), [(2.0, 0.02), (3.0, 0.03), (5.0, 0.1)])
def test_the_exponent_of_a_power_law_is_found(exponent: float, tolerance: float) -> None:
    """Quantiles of a density λ^−a."""
    places = (np.arange(4000) + 0.5) / 4000
    values = torch.from_numpy((1 - places) ** (-1 / (exponent - 1)))
    assert tail_exponent(values, 2000) == pytest.approx(exponent, abs=tolerance)


@pytest.mark.parametrize("estimator", ["mid", "peak"])
def test_the_exponent_is_one_of_the_spectrum_alone(estimator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((60, 90), generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn((60, 60), generator=generator, dtype=torch.float64))[0] @ weight
    alpha = spectral_exponent(weight, estimator)  # type: ignore[arg-type]
    for other in (7 * weight, turned, weight.T):
        assert spectral_exponent(other, estimator) == pytest.approx(alpha, rel=1e-6)  # type: ignore[arg-type]


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
    found = allocated(qualities, sizes, sparsity, spread)
    assert sum(s * n for s, n in zip(found, sizes, strict=True)) / sum(sizes) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= share <= MOST for share in found)
    order = np.argsort(qualities)
    assert (np.diff(np.array(found)[order]) >= -1e-12).all()
    if spread == 0:
        assert found == pytest.approx([sparsity] * 5)


def test_equal_blocks_lose_equal_shares() -> None:
    assert allocated([3.0, 3.0, 3.0], [10, 20, 30], 0.6, 0.3) == pytest.approx([0.6, 0.6, 0.6])
