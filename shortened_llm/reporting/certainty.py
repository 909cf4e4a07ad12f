"""How sure it is which blocks go, in words: by resampling the calibration text, and by how much of it was read."""

from collections.abc import Sequence

from shortened_llm.records import BlockScores, Cut
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


def cut_sentences(scores: BlockScores) -> list[str]:
    """For each requested cut, which blocks the calibration text does not tell apart; or that nothing is known of it."""
    if scores.cuts is None:
        return [f"{scores.ranking} has no interval: there are no resamples to tell one from."]
    if not scores.cuts:
        return [f"{scores.ranking}: no cut was requested, so none is judged."]
    return [f"{scores.ranking} at {cut.count} removed: {_judged(cut)}" for cut in scores.cuts]


def _judged(cut: Cut) -> str:
    if not cut.undecided:
        return "every block is decided."
    first, *others = cut.undecided
    named = [f"{first} (goes in {formats.share(cut.probabilities[first])} of resamples)"]
    named += [f"{block} ({formats.share(cut.probabilities[block])})" for block in others]
    blocks, verb = ("blocks", "are") if others else ("block", "is")
    return f"{blocks} {listed(named)} {verb} within the noise of the calibration text."


def listed(words: Sequence[object]) -> str:
    """`a, b and c`."""
    *firsts, last = map(str, words)
    return f"{', '.join(firsts)} and {last}" if firsts else last


def text_read(scores: BlockScores) -> str:
    """How much calibration text was read; empty where the record does not say."""
    return f"{formats.count(scores.tokens)} calibration tokens read in all" if scores.tokens else ""
