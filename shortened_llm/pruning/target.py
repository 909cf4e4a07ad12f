"""How much is to go: from the ratios that a user asks for to numbers of blocks, or of sub-layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Literal

from shortened_llm.config import SearchSection
from shortened_llm.errors import BadInputError
from shortened_llm.fields import Range
from shortened_llm.records import ModelSize, PruneUnit, Target, UnitScores

TITLES: dict[str, Literal["blocks", "sublayers"]] = {"block": "blocks", "sublayer": "sublayers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A target, and the numbers of units that may have to go for it."""

    target: Target
    unit: PruneUnit
    counts: tuple[int, ...]
    """Ascending; one number where the target is a ratio of units, or all units are of one size. Else it depends on
    which go."""


def removed_count(ratio: float, num_units: int) -> int:
    """Units that a ratio of units removes: `ratio * num_units`, rounded half up in decimal arithmetic."""
    return int((Decimal(str(ratio)) * num_units).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def requests(
    search: SearchSection, size: ModelSize, protected: tuple[int, ...], unit: PruneUnit
) -> tuple[Request, ...]:
    """What a search asks for, the largest models first; a number of units asked for twice is one with its ratio. Units
    of width and single weights have no numbers: their requests hold the target alone.

    Args:
        protected: numbers of the units that stay.

    Raises:
        BadInputError: a ratio removes no unit, or more than the unprotected ones.
    """
    if unit == "weight":
        assert not isinstance(search.ratios, Range), "checked with the configuration"
        of: Literal["weights", "nonzero"] = "weights" if search.of == "blocks" else "nonzero"
        return tuple(Request(target=Target(of=of, ratio=r), unit=unit, counts=()) for r in sorted(search.ratios))
    if unit == "width":
        assert not isinstance(search.ratios, Range), "checked with the configuration"
        asked = sorted(search.ratios)
        return tuple(Request(target=Target(of=search.of, ratio=ratio), unit=unit, counts=()) for ratio in asked)
    number, title = len(size.of_units(unit)), "blocks" if unit == "block" else "sub-layers"
    most = min(number - len(protected), number - 1)
    found: dict[tuple[tuple[int, ...], float], Request] = {}
    for field, target, counts in _asked(search, size, protected, unit):
        if not 1 <= counts[0] <= counts[-1] <= most:
            raise BadInputError(
                f"{field} removes {counts[0] or counts[-1]} of {number} {title}; allowed are 1 to {most}, since "
                f"{len(protected)} are protected (pruning.protect_first, pruning.protect_last)"
            )
        found[counts, target.ratio] = Request(target=target, unit=unit, counts=counts)
    return tuple(found[key] for key in sorted(found))


def count_of(request: Request, scores: UnitScores, size: ModelSize) -> int:
    """The number of units whose removal by these scores comes nearest to the target; the larger of two that are equally
    near."""
    sizes, total = size.of_units(scores.unit), size.without(()).parameters
    shares = [(count, Fraction(sum(sizes[unit] for unit in scores.removed(count)), total)) for count in request.counts]
    return _nearest(request.target.ratio, shares)


def _asked(
    search: SearchSection, size: ModelSize, protected: tuple[int, ...], unit: PruneUnit
) -> Iterator[tuple[str, Target, tuple[int, ...]]]:
    sizes, total = size.of_units(unit), size.without(()).parameters
    of = "" if search.of == "blocks" else f" (search.of: {search.of})"
    asked = search.ratios
    ratios = _ratios_between(asked, search.of, sizes, total) if isinstance(asked, Range) else asked
    if not ratios and asked:
        raise BadInputError(f"search.ratios: {asked} holds no whole number of {len(sizes)} {TITLES[unit]}{of}")
    for ratio in ratios:
        if search.of == "blocks":
            counts: tuple[int, ...] = (removed_count(ratio, len(sizes)),)
            target = Target(of=TITLES[unit], ratio=ratio)
        else:
            counts = _possible_counts(ratio, [number for i, number in enumerate(sizes) if i not in protected], total)
            target = Target(of=search.of, ratio=ratio)
        yield f"search.ratios: {ratio}{of}", target, counts
    for count in search.removed_blocks:
        yield f"search.removed_blocks: {count}", Target(of="blocks", ratio=count / len(sizes)), (count,)


def _ratios_between(asked: Range[float], of: str, sizes: Sequence[int], total: int) -> tuple[float, ...]:
    """The ratio of each number of units between two ratios; of parameters or bytes, that of units of mean size."""
    of_units = 1.0 if of == "blocks" else sum(sizes) / total
    ratios = (count * of_units / len(sizes) for count in range(1, len(sizes)))
    return tuple(ratio for ratio in ratios if asked.low <= ratio <= asked.high)


def _possible_counts(ratio: float, sizes: Sequence[int], total: int) -> tuple[int, ...]:
    """From the fewest units that reach the ratio, the largest ones, to the most. One more than there are where even all
    of them fall short by more than half a unit."""
    ascending = sorted(sizes)
    if Fraction(str(ratio)) * total > sum(ascending) + Fraction(min(ascending, default=0), 2):
        return (len(ascending) + 1,)
    bounds = []
    for ordered in (ascending[::-1], ascending):
        shares = [(count, Fraction(sum(ordered[:count]), total)) for count in range(len(ordered) + 1)]
        bounds.append(_nearest(ratio, shares))
    return tuple(range(bounds[0], bounds[1] + 1))


def _nearest(ratio: float, shares: list[tuple[int, Fraction]]) -> int:
    asked = Fraction(str(ratio))  # exact, so that halves are halves
    return min(shares, key=lambda counted: (abs(counted[1] - asked), -counted[0]))[0]
