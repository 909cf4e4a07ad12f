"""Magnitude: the size of the block's weights. No data."""

from shortened_llm.criteria.criterion import Criterion, CriterionScores
from shortened_llm.criteria.taylor import TaylorOptions


class MagnitudeOptions(TaylorOptions):
    """|weight|^power, reduced as in `taylor`. Source: Shortened LLaMA, arXiv 2402.02834, section 2.2 ("Mag")."""


CRITERION = Criterion(
    options=MagnitudeOptions,
    measured="magnitude",
    reads_text=False,
    reduce=lambda measured: CriterionScores(scores=tuple(measured.values.tolist())),
)
