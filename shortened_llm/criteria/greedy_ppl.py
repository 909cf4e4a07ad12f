"""Greedy PPL: remove the block whose absence costs least, score the shorter model, repeat."""

import numpy as np

from shortened_llm.criteria.criterion import Criterion, CriterionOptions, CriterionScores


class GreedyPplOptions(CriterionOptions):
    """Perplexity as in `ppl`, of the model that all earlier removals have shortened; one unit goes at a time.
    Sources: SLEB, arXiv 2402.09025, section 4; for sub-layers BlockPruner, arXiv 2406.10594."""


def cheapest(losses: np.ndarray) -> int:
    """The block to remove, from the losses [1 + blocks] of one step."""
    return int(np.nanargmin(losses[1:]))


def greedy_ppl_scores(losses: np.ndarray) -> CriterionScores:
    """The order of removal; the other blocks follow by the loss of removing them next.

    A block's score is the perplexity of the model at its removal: without it and all that went before. Protected blocks
    have none and come last.

    Args:
        losses: as measured, [num_removed, 1 + blocks].
    """
    removed: list[int] = []
    perplexity: list[float | None] = [
        None if np.isnan(loss) else float(np.exp(loss)) for loss in losses[-1, 1:]
    ]  # of the last step, for what stays
    for row in losses:
        removed.append(cheapest(row))
        perplexity[removed[-1]] = float(np.exp(row[1 + removed[-1]]))
    others = [block for block in range(len(perplexity)) if block not in removed]
    others.sort(key=lambda block: (float("inf") if (score := perplexity[block]) is None else score, block))
    return CriterionScores(
        scores=tuple(perplexity),
        removal_order=(*removed, *others),
        dense_perplexity=float(np.exp(losses[0, 0])),
    )


CRITERION = Criterion(
    options=GreedyPplOptions,
    measured="greedy_ppl",
    reads_text=True,
    units=("block", "sublayer"),
    searches=True,
    reduce=lambda measured: greedy_ppl_scores(measured.values),
)
