"""How the loss of one candidate falls with the tokens it is trained on.

L(D) = E + B * D^(-beta), the form of Hoffmann et al. (arXiv 2203.15556, equation 10) at one model size, fitted to runs
of several lengths that each ended with their decay, as such fits need (Hägele et al., arXiv 2405.18392).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortened_llm.records import EvalScores

LEAST_RUNGS = 3
"""Points that three parameters need."""
LEAST_EXPONENT, MOST_EXPONENT = 1e-3, 2.0
RANGE = MOST_EXPONENT / LEAST_EXPONENT
POINTS, ZOOMS = 101, 3
"""Exponents that are tried at a time, and how often between the neighbours of the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """A fitted curve."""

    floor: float
    """E: the loss, in nats, that no number of tokens gets below."""
    log_scale: float
    """Logarithm of B, which has as many digits as D^beta; -inf where tokens change nothing."""
    exponent: float
    """beta."""

    def loss(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.floor + np.exp(self.log_scale - self.exponent * np.log(tokens))

    def tokens_to(self, loss: float) -> float:
        """Tokens at which the curve comes to a loss; infinite where it never does."""
        if loss <= self.floor or self.log_scale == -math.inf:
            return math.inf
        return float(np.exp(min(700.0, (self.log_scale - math.log(loss - self.floor)) / self.exponent)))


def fit_power_laws(tokens: Sequence[float], losses: NDArray[np.float64]) -> list[PowerLaw]:
    """Least squares with E >= 0, B >= 0 and 0 < beta <= 2, for each line of losses.

    For one beta the curve is linear in E and B, so that the best of these are known, and beta alone is sought (variable
    projection: Golub and Pereyra, 1973): over its whole range, then between the neighbours of the best. Solvers of
    three parameters take a thousand times as long, as the resamples of a report would do one by one.

    Args:
        tokens: [rungs], at least `LEAST_RUNGS` different ones.
        losses: nats, [lines, rungs].
    """
    longest = max(tokens)
    # Of the longest run, so that numbers stay near one: L = E + b * (D / D_longest)^(-beta).
    logs = np.log(np.asarray(tokens) / longest)
    exponents, step = np.geomspace(LEAST_EXPONENT, MOST_EXPONENT, POINTS)[None], RANGE ** (1 / (POINTS - 1))
    for _ in range(1 + ZOOMS):
        floors, gaps, errors = _projected(exponents, logs, losses)
        best = errors.argmin(axis=1)[:, None]
        centres = np.take_along_axis(np.broadcast_to(exponents, errors.shape), best, axis=1)
        exponents = np.clip(centres * np.geomspace(1 / step, step, POINTS), LEAST_EXPONENT, MOST_EXPONENT)
        step **= 2 / (POINTS - 1)
    found = (np.take_along_axis(of, best, axis=1).ravel().tolist() for of in (floors, gaps))
    return [
        PowerLaw(
            floor=floor,
            log_scale=math.log(gap) + exponent * math.log(longest) if gap > 0 else -math.inf,
            exponent=exponent,
        )
        for floor, gap, exponent in zip(*found, centres.ravel().tolist(), strict=True)
    ]


def _projected(
    exponents: NDArray[np.float64], logs: NDArray[np.float64], losses: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The best E and b for each beta, and the squared error that is left; each [lines, betas]."""
    powers, losses = np.exp(-exponents[..., None] * logs), losses[:, None, :]
    mean, level = powers.mean(-1), losses.mean(-1)
    apart = powers - mean[..., None]
    gaps = np.maximum(0.0, (apart * losses).sum(-1) / np.square(apart).sum(-1))
    floors = level - gaps * mean
    through_zero = (powers * losses).sum(-1) / np.square(powers).sum(-1)
    gaps, floors = np.where(floors < 0, through_zero, gaps), np.maximum(0.0, floors)
    return floors, gaps, np.square(floors[..., None] + gaps[..., None] * powers - losses).sum(-1)


def resampled_losses(models: Sequence[EvalScores], resamples: int, *, seed: int = 0) -> NDArray[np.float64] | None:
    """Mean loss of each model over the texts, [1 + resamples, models]: as measured, then over documents that are drawn
    with replacement, the same ones for all models.

    Returns:
        None where the models were not measured on the same documents of the same texts, or a text has only one.
    """
    if len({tuple(text.unit for text in model.perplexity) for model in models}) != 1 or not models[0].perplexity:
        return None
    generator, total = np.random.default_rng(seed), np.zeros((1 + resamples, len(models)))
    for of_text in zip(*(model.perplexity for model in models), strict=True):
        number = len(of_text[0].document_predictions)
        if number < 2 or len({text.document_predictions for text in of_text}) > 1:
            return None
        drawn = generator.multinomial(number, np.full(number, 1 / number), size=resamples)
        weights = np.vstack([np.ones(number), drawn])
        sums = weights @ np.array([text.document_nll for text in of_text]).T
        total += sums / (weights @ np.array(of_text[0].document_predictions))[:, None]
    return total / len(models[0].perplexity)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 %, of which some may be infinite."""
    low, high = np.quantile(values, (0.025, 0.975), method="nearest")
    return float(low), float(high)
