"""How sure it is which units go: by resampling the calibration text."""

from shortened_llm.records import UnitScores
from shortened_llm.reporting import formats


def undecided_units(scores: UnitScores) -> tuple[int, ...]:
    """Units, ascending, that some requested cut leaves undecided."""
    return tuple(sorted({unit for cut in scores.cuts or () for unit in cut.undecided}))


def chances(scores: UnitScores, unit: int) -> str:
    """`goes in 45 % of resamples at 6 removed, in 100 % at 12`; empty where nothing was resampled, or protected."""
    if not scores.cuts or unit in scores.protected:
        return ""
    first, *others = [(formats.share(cut.probabilities[unit]), cut.count) for cut in scores.cuts]
    return ", ".join(
        [f"goes in {first[0]} of resamples at {first[1]} removed", *(f"in {p} at {count}" for p, count in others)]
    )
