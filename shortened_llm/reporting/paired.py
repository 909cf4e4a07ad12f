"""Whether one model is better than another on one text or task: differences of paired scores, and when they count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from shortened_llm.records import EvalScores, MetricScore, Objective, PerplexityScore, TaskScore
from shortened_llm.records.objective import BITS_PER_BYTE, PERPLEXITY

LEAST_DIFFERENCE = 0.04
"""Nats per prediction. Another seed alone moves a short retraining by 0.02."""
LEAST_STANDARD_ERRORS = 2.0
LEAST_SEEDS = 2
NORMAL_95 = 1.96
"""Standard errors on each side of a mean within which 95 % of a normal distribution lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One model less another: mean negative log-likelihood in nats per prediction, or a measure of task items."""

    mean: float
    """Over the seeds; of a loss it is negative where the first model is better."""
    standard_error: float | None
    """Standard error of the mean; None where it cannot be told: no scores by document or item, or a single one."""
    per_seed: tuple[float, ...]
    num_clusters: int
    """Documents with predictions, or items; 0 where the scores are not by document or item."""

    @property
    def verdict(self) -> str:
        """`separated`, or why two losses over several seeds are not."""
        if len(self.per_seed) < LEAST_SEEDS:
            return "one seed only"
        if self.standard_error is None:
            return "not separated: no standard error"
        if abs(self.mean) <= LEAST_DIFFERENCE:
            return f"not separated: within {LEAST_DIFFERENCE:g} nats"
        if not self.stands_out:
            return f"not separated: within {LEAST_STANDARD_ERRORS:g} standard errors"
        if len({math.copysign(1, value) for value in self.per_seed}) > 1:
            return "not separated: seeds differ in sign"
        return SEPARATED

    @property
    def stands_out(self) -> bool:
        """Beyond two standard errors."""
        return self.standard_error is not None and abs(self.mean) > LEAST_STANDARD_ERRORS * self.standard_error

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, where there is a standard error."""
        if self.standard_error is None:
            return None
        return self.mean - NORMAL_95 * self.standard_error, self.mean + NORMAL_95 * self.standard_error

    @property
    def negated(self) -> "Difference":
        """The second model less the first."""
        return replace(self, mean=-self.mean, per_seed=tuple(-value for value in self.per_seed))

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
        return _of_means(tuple(first.mean_nll - second.mean_nll for first, second in pairs))
    (predictions,) = counts
    return _clustered([np.subtract(first.document_nll, second.document_nll) for first, second in pairs], predictions)


def objective_difference(objective: Objective, first: EvalScores, second: EvalScores) -> Difference | None:
    """Compare two models by the loss that a search minimises, document by document or item by item; None where they
    were not measured alike, or a score is missing or not finite."""
    if objective.units(first) != objective.units(second):
        return None
    if objective.metric == PERPLEXITY:
        pairs = list(zip(first.perplexity, second.perplexity, strict=True))
        found = [difference for pair in pairs if (difference := paired_difference([pair])) is not None]
        return mean_difference(found) if found and len(found) == len(pairs) else None
    if not math.isfinite(objective.loss(first) - objective.loss(second)):
        return None
    for one, other in zip(objective.parts(first), objective.parts(second), strict=True):
        if isinstance(one, TaskScore) and isinstance(other, TaskScore):
            on_task = task_difference(one, other)
            if objective.metric.endswith(BITS_PER_BYTE):
                return on_task.bits_per_byte
            return on_task.value.negated if objective.is_maximised(one) else on_task.value
        if isinstance(one, MetricScore) and isinstance(other, MetricScore):
            difference = _of_means((one.value - other.value,))
            return difference.negated if objective.is_maximised(one) else difference
    return None


def _of_means(per_seed: tuple[float, ...]) -> Difference:
    return Difference(mean=sum(per_seed) / len(per_seed), standard_error=None, per_seed=per_seed, num_clusters=0)


def _clustered(differences: ArrayLike, sizes: ArrayLike) -> Difference:
    """See `paired_difference`.

    Args:
        differences: summed over each cluster, [seeds, clusters].
        sizes: predictions of each cluster, [clusters].
    """
    differences, sizes = np.array(differences, dtype=float), np.array(sizes, dtype=float)
    per_seed = differences.sum(axis=1) / sizes.sum()
    mean = per_seed.mean()
    residuals = differences.mean(axis=0) - mean * sizes
    variance = None
    if (number := len(sizes)) > 1:
        variance = number / (number - 1) * np.square(residuals).sum() / sizes.sum() ** 2
        if len(per_seed) > 1:
            variance += per_seed.var(ddof=1) / len(per_seed)
    return Difference(
        mean=float(mean),
        standard_error=None if variance is None else math.sqrt(variance),
        per_seed=tuple(per_seed.tolist()),
        num_clusters=number,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDifference:
    """One model less another on one task. A number is None where the items do not tell it."""

    value: Difference
    """Difference in the metric."""
    mcnemar_p: float | None
    """Given for a 0/1 metric; see `mcnemar`."""
    num_flips: int | None
    """Items whose preferred choice changed, whether or not that was right."""
    num_items: int
    bits_per_byte: Difference | None
    """Difference on the gold answers; negative where the first model is better."""

    @property
    def stands_out(self) -> bool:
        """Below 5 % by McNemar's test, or, where the metric is not 0/1, beyond two standard errors."""
        return self.value.stands_out if self.mcnemar_p is None else self.mcnemar_p < LEAST_SIGNIFICANCE


LEAST_SIGNIFICANCE = 0.05


def task_difference(first: TaskScore, second: TaskScore) -> TaskDifference:
    """Compare two models on one task under one protocol, item by item.

    The estimator is that of `paired_difference` with each item a cluster of its own: the standard error is the standard
    deviation of the items' differences / sqrt(items). Without aligned items the difference is that of the values,
    without a standard error.
    """
    return TaskDifference(
        value=_by_item(first.item_values, second.item_values) or _of_means((first.value - second.value,)),
        mcnemar_p=mcnemar(first.item_values, second.item_values),
        num_flips=_flips(first.item_answers, second.item_answers),
        num_items=first.num_items,
        bits_per_byte=_by_item(first.item_bits_per_byte, second.item_bits_per_byte),
    )


def _by_item(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    if not first or len(first) != len(second):
        return None
    return _clustered([np.subtract(first, second)], np.ones(len(first)))


def _flips(first: Sequence[int], second: Sequence[int]) -> int | None:
    if not first or len(first) != len(second):
        return None
    return int(np.not_equal(first, second).sum())


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of McNemar's exact test: that as many or more of the items that only one model has right fall to the
    same one, where each falls to either with probability 1/2 (McNemar, 1947).

    Args:
        first: 1 where the model is right on an item, 0 where it is wrong.
        second: the same of the other model, in the same order.

    Returns:
        None where there are no aligned items, or other values among them.
    """
    if not first or len(first) != len(second) or not {*first, *second} <= {0, 1}:
        return None
    only_first, differing = int(np.greater(first, second).sum()), int(np.not_equal(first, second).sum())
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def mean_difference(differences: Sequence[Difference]) -> Difference | None:
    """The mean over tasks, whose items are different ones, so that squared standard errors add; None without any."""
    if not differences:
        return None
    errors = [difference.standard_error for difference in differences]
    known = [error for error in errors if error is not None]
    mean = sum(difference.mean for difference in differences) / len(differences)
    return Difference(
        mean=mean,
        standard_error=math.hypot(*known) / len(known) if len(known) == len(errors) else None,
        per_seed=(mean,),
        num_clusters=sum(difference.num_clusters for difference in differences),
    )
