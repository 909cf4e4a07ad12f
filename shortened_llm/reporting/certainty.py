"""How sure it is which blocks go: by resampling the calibration text."""

from shortened_llm.records import BlockScores
from shortened_llm.reporting import formats


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
