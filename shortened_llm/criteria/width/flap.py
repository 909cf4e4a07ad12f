"""FLAP: how much what a channel carries varies, weighted by where it goes."""

from typing import Literal

import numpy as np

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import (
    COLUMN_SQUARES,
    INPUTS,
    PUBLIC_VARIANCE,
    VARIANCE,
    WidthCriterion,
    WidthMeasured,
    standardised,
)


class FlapOptions(CriterionOptions):
    """Variance over tokens of each input of an output projection, times the sum of the squares of its column,
    standardised within each block for attention and MLP apart; a head is the mean of its inputs. Forward passes alone.
    Source: FLAP, arXiv 2312.11983, section 3 ("WIFV", "AL-AM")."""

    statistics: Literal["textbook", "public"] = "textbook"
    """textbook: the variance over all tokens. public: as in the public code of the paper, f = (n - 2) / (n - 1) f + sum
    of (x - m)^2 / n over the tokens x of sequence n, from the second on, m being the mean over the first n; of
    attention the square of the score."""


def flap_scores(measured: WidthMeasured) -> tuple[np.ndarray, np.ndarray]:
    """Scores of groups and channels."""
    is_public = measured.options.statistics == "public"
    fluctuation = measured.values[:, PUBLIC_VARIANCE if is_public else VARIANCE] * measured.values[:, COLUMN_SQUARES]
    heads = fluctuation[:, : fluctuation.shape[1] - measured.channels] ** (2 if is_public else 1)
    of_groups = standardised(heads).reshape(len(heads), measured.groups, -1).mean(axis=2)
    return of_groups, standardised(measured.of_channels(fluctuation))


CRITERION = WidthCriterion(
    options=FlapOptions, measured=INPUTS, reads_text=True, reduce=flap_scores, is_standardised=True
)
