"""The recovery curve: a fit to numbers whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import least_squares

from shortened_llm.records import EvalScores
from shortened_llm.reporting.recovery import PowerLaw, fit_power_laws, interval, resampled_losses
from tests.reporting.experiments import by_document

TOKENS = (3.2e6, 9.6e6, 3.2e7)
TRUTH = PowerLaw(floor=2.1, log_scale=math.log(400.0), exponent=0.4)


@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        PowerLaw(floor=0.0, log_scale=math.log(20.0), exponent=0.1),
        PowerLaw(floor=3.0, log_scale=math.log(1e9), exponent=1.5),
    ],
)
def test_exact_losses_give_their_parameters(truth: PowerLaw) -> None:
    (found,) = fit_power_laws(TOKENS, truth.loss(np.array(TOKENS))[None])
    assert found.floor == pytest.approx(truth.floor, abs=2e-3)
    assert found.exponent == pytest.approx(truth.exponent, rel=2e-3)
    assert found.loss(np.array([1e8])) == pytest.approx(truth.loss(np.array([1e8])), abs=1e-3)


@pytest.mark.parametrize("points", [3, 5])
def test_no_solver_of_all_parameters_fits_better(points: int) -> None:
    tokens = np.geomspace(1e6, 1e8, points)
    losses = TRUTH.loss(tokens) + np.random.default_rng(points).normal(0, 0.1, (40, points))

    def residuals(at: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
        return at[0] + at[1] * (tokens / 1e8) ** -at[2] - own

    bounds = ((0.0, 0.0, 1e-3), (np.inf, np.inf, 2.0))
    for own, law in zip(losses, fit_power_laws(list(tokens), losses), strict=True):
        theirs = least_squares(residuals, (2.0, 0.2, 0.5), bounds=bounds, args=(own,))
        assert np.square(law.loss(tokens) - own).sum() <= 2 * theirs.cost + 1e-6


def test_losses_that_rise_or_stand_still_are_never_extrapolated_downwards() -> None:
    for law in fit_power_laws(TOKENS, np.array([[2.0, 3.0, 4.0], [3.0, 3.0, 3.0]])):
        assert law.loss(np.array([1e12])) == pytest.approx(3.0)
        assert law.tokens_to(2.9) == math.inf


def test_tokens_to_a_loss_are_where_the_curve_has_it() -> None:
    for loss in (2.2, 2.5, 4.0):
        assert TRUTH.loss(np.array([TRUTH.tokens_to(loss)])) == pytest.approx(loss)
    assert TRUTH.tokens_to(TRUTH.floor) == math.inf


def measured(seed: int, noise: float) -> list[EvalScores]:
    """One candidate at each rung: documents are as hard for all of its models, but for `noise` nats."""
    generator, found = np.random.default_rng(seed), []
    hardness = generator.normal(0, 0.3, 160)
    for loss in TRUTH.loss(np.array(TOKENS)):
        text = by_document("wiki", 1.0, seed=1)
        sizes = np.array(text.document_predictions)
        sums = (loss + hardness + generator.normal(0, noise, 160)) * sizes
        nll = float(sums.sum() / sizes.sum())
        text = replace(text, document_nll=tuple(sums.tolist()), mean_nll=nll, perplexity=math.exp(nll))
        found.append(EvalScores(perplexity=(text,)))
    return found


def test_intervals_hold_the_truth() -> None:
    """Of 40 draws, 95 % are 38; three points make the bootstrap a little optimistic."""
    floors = exponents = 0
    for seed in range(40):
        losses = resampled_losses(measured(seed, 0.1), 400)
        assert losses is not None
        _, *resampled = fit_power_laws(TOKENS, losses)
        low, high = interval([law.floor for law in resampled])
        floors += low <= TRUTH.floor <= high
        low, high = interval([law.exponent for law in resampled])
        exponents += low <= TRUTH.exponent <= high
    assert floors >= 35
    assert exponents >= 35


def test_all_models_are_resampled_on_the_same_documents() -> None:
    losses = resampled_losses(measured(0, 0.0), 50)
    assert losses is not None
    assert losses.shape == (51, 3)
    assert losses[:, 0].std() > 0.01
    assert losses[:, 0] - losses[:, 2] == pytest.approx(np.full(51, losses[0, 0] - losses[0, 2]))
    assert losses[0] == pytest.approx([scores.mean_nll for scores in measured(0, 0.0)])


def test_nothing_is_resampled_where_documents_differ() -> None:
    one, *_ = measured(0, 0.1)
    other = EvalScores(perplexity=(by_document("wiki", 2.0, seed=1, documents=50),))
    elsewhere = EvalScores(perplexity=(by_document("c4", 2.0, seed=1),))
    assert resampled_losses([one, other], 10) is None
    assert resampled_losses([one, elsewhere], 10) is None
