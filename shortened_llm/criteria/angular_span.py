"""Angular span: the contiguous run of blocks that turns the last token's hidden state the least."""

from dataclasses import replace

import numpy as np

from shortened_llm.criteria.criterion import ANGLE, Criterion, CriterionOptions, CriterionScores, mean_scores


class AngularSpanOptions(CriterionOptions):
    """For each count n, the run of n blocks with the lowest mean over sequences of (1 / pi) arccos cos(h_m, h_{m+n}),
    at the last token. Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887,
    section 3."""


def angular_span_scores(angles: np.ndarray, protected: tuple[int, ...]) -> CriterionScores:
    """The best span of each length, and the angle over each single block as its score.

    Protection wins: a span that holds a protected block is never chosen. So there is a set for each count up to the
    longest unprotected run.

    Args:
        angles: between the states before block m and before block n, [sequences, blocks + 1, blocks + 1].
    """
    mean = angles.mean(axis=0)
    num_blocks = len(mean) - 1
    blocks = np.arange(num_blocks)
    # How many protected blocks lie before each: a span holds none where the number at its ends is the same.
    passed = np.concatenate([[0], np.cumsum(np.isin(blocks, protected))])
    sets = []
    for count in range(1, num_blocks + 1):
        starts = np.flatnonzero(passed[count:] == passed[:-count])
        if len(starts):
            best = int(starts[mean[starts, starts + count].argmin()])
            sets.append(tuple(range(best, best + count)))
    single = angles[:, blocks, blocks + 1]
    return replace(mean_scores(single), sets=tuple(sets))


CRITERION = Criterion(
    options=AngularSpanOptions,
    measured=ANGLE,
    reads_text=True,
    reduce=lambda measured: angular_span_scores(measured.values, measured.protected),
)
