"""How sure it is which blocks go: by resampling the calibration text, and by other draws of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BlockScores, ScoreDraw, removed_blocks
from shortened_llm.reporting import formats


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawsAgreement:
    """How far all draws of the calibration text lead to the same plan."""

    count: int
    """How many blocks are removed."""
    always: tuple[int, ...]
    """Blocks that go in every draw, ascending."""
    sometimes: tuple[int, ...]
    """Blocks that go in some draws only, ascending."""


def draws_agreements(scores: BlockScores, counts: Sequence[int]) -> tuple[DrawsAgreement, ...]:
    """One for each of `counts`; none where the calibration text was drawn once."""
    draws_of: tuple[BlockScores | ScoreDraw, ...] = (scores, *scores.draws)
    agreements = []
    for count in counts if scores.draws else ():
        draws = [set(removed_blocks(draw.order, draw.sets, scores.protected, count)) for draw in draws_of]
        always = set.intersection(*draws)
        sometimes = set.union(*draws) - always
        agreements.append(DrawsAgreement(count=count, always=tuple(sorted(always)), sometimes=tuple(sorted(sometimes))))
    return tuple(agreements)


def undecided_blocks(scores: BlockScores) -> tuple[int, ...]:
    """Blocks, ascending, that some requested cut leaves undecided."""
    return tuple(sorted({block for cut in scores.cuts or () for block in cut.undecided}))


def chances(scores: BlockScores, block: int) -> str:
    """`goes in 45 % of resamples at 6 removed, in 100 % at 12`; empty where nothing was resampled, or protected."""
    if not scores.cuts or block in scores.protected:
        return ""
    first, *others = [(formats.share(cut.probabilities[block]), cut.count) for cut in scores.cuts]
    return ", ".join(
        [f"goes in {first[0]} of resamples at {first[1]} removed", *(f"in {p} at {count}" for p, count in others)]
    )
