"""Last N: remove from the end. A control that looks at nothing."""

from shortened_llm.criteria.criterion import Criterion, CriterionOptions, CriterionScores


class LastNOptions(CriterionOptions):
    """A block's score is its distance from the end: a control that looks at nothing. Protected blocks are passed over,
    and the N last of the others go."""


def last_n_scores(num_blocks: int) -> CriterionScores:
    """The distance of each block from the end."""
    return CriterionScores(scores=tuple(float(num_blocks - 1 - block) for block in range(num_blocks)))


CRITERION = Criterion(
    options=LastNOptions,
    measured=None,
    reads_text=False,
    units=("block", "sublayer"),
    reduce=lambda measured: last_n_scores(len(measured.values)),
)
