"""Wanda-SP: the weights of a channel, times the size of what it carries."""

import numpy as np

from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.criteria.width.criterion import COLUMN_MEAN, INPUTS, NORM, WidthCriterion, WidthMeasured


class WandaSpOptions(CriterionOptions):
    """Mean over the rows of |weight| x Euclidean norm over tokens, for each input of an output projection; a head is
    the mean of its inputs. Forward passes alone. Source: FLAP, arXiv 2312.11983, section 4 ("Wanda-sp"), after Wanda,
    arXiv 2306.11695."""


def wanda_sp_scores(measured: WidthMeasured) -> tuple[np.ndarray, np.ndarray]:
    """Scores of groups and channels."""
    importance = measured.values[:, COLUMN_MEAN] * measured.values[:, NORM]
    return measured.of_groups(importance), measured.of_channels(importance)


CRITERION = WidthCriterion(options=WandaSpOptions, measured=INPUTS, reads_text=True, reduce=wanda_sp_scores)
