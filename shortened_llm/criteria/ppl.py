"""PPL: the perplexity of the network without the block."""

import numpy as np

from shortened_llm.criteria.criterion import (
    NLL,
    Criterion,
    CriterionOptions,
    CriterionScores,
    floats,
    standard_errors,
)


class PplOptions(CriterionOptions):
    """Perplexity without the block, or sub-layer: PPL_m = exp(mean token negative log-likelihood of the network without
    unit m), one-shot. Sources: Shortened LLaMA, arXiv 2402.02834, section 2.2; for sub-layers BlockPruner, arXiv
    2406.10594, which chooses them one by one as greedy_ppl does."""


def ppl_scores(nll: np.ndarray) -> CriterionScores:
    """Perplexity without each block.

    The standard error of a score is that of its paired difference from the dense model, over sequences, carried to
    perplexity by the derivative of exp.

    Args:
        nll: mean loss in nats per prediction, [sequences, 1 + blocks], the dense model first.
    """
    perplexity = np.exp(nll.mean(axis=0))
    errors = standard_errors(nll[:, 1:] - nll[:, :1])
    return CriterionScores(
        scores=tuple(perplexity[1:].tolist()),
        standard_errors=None if errors is None else floats(errors * perplexity[1:]),
        dense_perplexity=float(perplexity[0]),
    )


CRITERION = Criterion(
    options=PplOptions,
    measured=NLL,
    reads_text=True,
    units=("block", "sublayer"),
    reduce=lambda measured: ppl_scores(measured.values),
)
