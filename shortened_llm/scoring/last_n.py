"""Last N: remove from the end. A control that looks at nothing."""

from shortened_llm.scoring.criterion import CriterionScores


def last_n_scores(num_blocks: int) -> CriterionScores:
    """A block's score is its distance from the end.

    Protection wins: protected blocks are passed over, and the N last of the others go.
    """
    return CriterionScores(scores=tuple(float(num_blocks - 1 - block) for block in range(num_blocks)))
