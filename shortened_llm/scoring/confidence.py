"""How sure a selection of blocks is: over resamples of the calibration sequences, and at any stopping time."""

import math
from collections.abc import Callable

import numpy as np

from shortened_llm.records import RESAMPLES, Cut, removed_blocks
from shortened_llm.scoring.criterion import CriterionScores


def resampled_cuts(
    values: np.ndarray,
    score: Callable[[np.ndarray], CriterionScores],
    counts: tuple[int, ...],
    protected: tuple[int, ...],
) -> tuple[Cut, ...] | None:
    """For each count, which blocks go, and in which share of the bootstrap resamples each of them would.

    Sequences are drawn with replacement, whole, since the tokens of one sequence are correlated; None for a single
    sequence.

    Args:
        values: a statistic, [sequences, ...].
        score: from values to scores.
    """
    if len(values) < 2:
        return None
    generator = np.random.default_rng(0)
    chosen = score(values)
    gone = np.zeros((len(counts), len(chosen.scores)))
    for _ in range(RESAMPLES):
        resampled = score(values[generator.integers(len(values), size=len(values))])
        for row, count in zip(gone, counts, strict=True):
            row[list(removed_blocks(resampled.order, resampled.sets, protected, count))] += 1
    return tuple(
        Cut(
            count=count,
            removed=removed_blocks(chosen.order, chosen.sets, protected, count),
            probabilities=tuple((row / RESAMPLES).tolist()),
        )
        for count, row in zip(counts, gone, strict=True)
    )


def surely_negative(values: np.ndarray, alpha: float, horizon: int) -> np.ndarray:
    """Whether the mean of each column of [observations, columns] is below 0, by a test that may be read at any time.

    If the mean is 0, the chance that this ever turns true, however often one looks and whenever one stops, is at most
    `alpha`: exactly for normal values of unknown variance, and about so for means over many tokens. The evidence is the
    Bayes factor of the t-test with effect size ~ N(0, g), which is a martingale under the null hypothesis.

    Source: Gönen et al., "The Bayesian two-sample t test", 2005; Wang and Ramdas, "Anytime-valid t-tests and confidence
    sequences for Gaussian means with unknown variance", arXiv 2310.03722.

    Args:
        horizon: number of observations after which the test is to be most powerful; sets g.
    """
    number = len(values)
    if number < 2:
        return np.zeros(values.shape[1], dtype=bool)
    g = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / horizon
    means, variances = values.mean(axis=0), values.var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = number * means**2 / variances / (number - 1)  # t^2 / (n - 1); NaN for zeros, which is no evidence
        gain = np.log1p(ratio) - np.log1p(ratio / (1 + number * g))
    gain = np.where(np.isinf(ratio), math.log1p(number * g), gain)  # the limit: no variance at all
    log_evidence = number / 2 * gain - math.log1p(number * g) / 2
    return (means < 0) & (log_evidence >= math.log(1 / alpha))
