"""Whether one model is better than another on one text: differences of paired scores, and when they count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shortened_llm.records import PerplexityScore

LEAST_DIFFERENCE = 0.04
"""Nats per prediction. Another seed alone moves a short retraining by 0.02."""
LEAST_STANDARD_ERRORS = 2.0
LEAST_SEEDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean negative log-likelihood of one model less that of another, in nats per prediction."""

    mean: float
    """Over the seeds; negative where the first model is better."""
    standard_error: float | None
    """Of the mean; None where it cannot be told: no scores by document, or a single document."""
    per_seed: tuple[float, ...]
    num_documents: int
    """With predictions; 0 where the scores are not by document."""

    @property
    def verdict(self) -> str:
        """`separated`, or why the two are not."""
        if len(self.per_seed) < LEAST_SEEDS:
            return "one seed only"
        if self.standard_error is None:
            return "not separated: no standard error"
        if abs(self.mean) <= LEAST_DIFFERENCE:
            return f"not separated: within {LEAST_DIFFERENCE:g} nats"
        if abs(self.mean) <= LEAST_STANDARD_ERRORS * self.standard_error:
            return f"not separated: within {LEAST_STANDARD_ERRORS:g} standard errors"
        if len({math.copysign(1, value) for value in self.per_seed}) > 1:
            return "not separated: seeds differ in sign"
        return SEPARATED

    @property
    def is_separated(self) -> bool:
        return self.verdict == SEPARATED


SEPARATED = "separated"


def paired_difference(pairs: Sequence[tuple[PerplexityScore, PerplexityScore]]) -> Difference | None:
    """Compare two models on one text and protocol, each seed of the one with the same seed of the other.

    For one seed d = sum of (a_i - b_i) / sum of n_i over documents i, with summed negative log-likelihoods a_i and b_i
    of n_i predictions: a ratio estimator with documents as clusters, since predictions of one document are correlated.
    Its standard error is sqrt(D / (D - 1) * sum of r_i^2) / sum of n_i over D documents, with the residuals
    r_i = a_i - b_i - d * n_i (Cochran, Sampling Techniques, 1977, section 6).

    Over S seeds the difference is the mean of theirs. All seeds read the same documents, so that error does not shrink
    with seeds: it is computed from each document's mean over the seeds. The spread of the seeds themselves is added:
    SE^2 = SE of the documents^2 + variance of the seeds' d / S.

    Args:
        pairs: one for each seed, (first model, second model).

    Returns:
        None where there are no pairs, or a score is not finite. Without aligned scores by document the difference is
        that of the means, without a standard error.
    """
    if not pairs or not all(math.isfinite(score.mean_nll) for pair in pairs for score in pair):
        return None
    counts = {score.document_predictions for pair in pairs for score in pair}
    if len(counts) > 1 or counts == {()}:
        of_means = tuple(first.mean_nll - second.mean_nll for first, second in pairs)
        return Difference(
            mean=sum(of_means) / len(of_means), standard_error=None, per_seed=of_means, num_documents=0
        )  # fmt: skip
    (predictions,) = (np.array(count, dtype=float) for count in counts)
    differences = np.array([np.subtract(first.document_nll, second.document_nll) for first, second in pairs])
    per_seed = differences.sum(axis=1) / predictions.sum()
    mean = per_seed.mean()
    residuals = differences.mean(axis=0) - mean * predictions
    variance = None
    if (size := len(predictions)) > 1:
        variance = size / (size - 1) * np.square(residuals).sum() / predictions.sum() ** 2
        if len(pairs) > 1:
            variance += per_seed.var(ddof=1) / len(pairs)
    return Difference(
        mean=float(mean),
        standard_error=None if variance is None else math.sqrt(variance),
        per_seed=tuple(per_seed.tolist()),
        num_documents=size,
    )
