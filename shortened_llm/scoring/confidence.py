"""How sure a selection of blocks is: over resamples of the calibration sequences."""

from collections.abc import Callable

import numpy as np

from shortened_llm.criteria.criterion import CriterionScores
from shortened_llm.records import RESAMPLES, Cut, removed_units


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
            row[list(removed_units(resampled.order, resampled.sets, protected, count))] += 1
    return tuple(
        Cut(
            count=count,
            removed=removed_units(chosen.order, chosen.sets, protected, count),
            probabilities=tuple((row / RESAMPLES).tolist()),
        )
        for count, row in zip(counts, gone, strict=True)
    )
