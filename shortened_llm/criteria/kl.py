"""KL: how far the predictions move when the block goes."""

from shortened_llm.criteria.criterion import KL, Criterion, CriterionOptions, mean_scores


class KlOptions(CriterionOptions):
    """Mean over predictions of KL(dense || without the block), in nats. No paper of its own: the divergence that
    distillation minimises, taken for each block as in `ppl`."""


CRITERION = Criterion(
    options=KlOptions,
    measured=KL,
    reads_text=True,
    units=("block", "sublayer"),
    reduce=lambda measured: mean_scores(measured.values),
)
