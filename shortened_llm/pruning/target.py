"""How much is to go: from the ratios that a user asks for to numbers of blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

from shortened_llm.config import SearchSection
from shortened_llm.errors import BadInputError
from shortened_llm.fields import Range
from shortened_llm.records import BlockScores, ModelSize, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A target, and the numbers of blocks that may have to go for it."""

    target: Target
    counts: tuple[int, ...]
    """Ascending; one number where the target is a ratio of blocks, or all blocks are of one size. Else it depends on
    which blocks go."""


def removed_count(ratio: float, num_blocks: int) -> int:
    """Blocks that a ratio of blocks removes: `ratio * num_blocks`, rounded half up in decimal arithmetic."""
    return int((Decimal(str(ratio)) * num_blocks).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def requests(search: SearchSection, size: ModelSize, protected: tuple[int, ...]) -> tuple[Request, ...]:
    """What a search asks for, the largest models first; a number of blocks asked for twice is one with its ratio.

    Raises:
        BadInputError: a ratio removes no block, or more than the unprotected ones.
    """
    num_blocks = len(size.block_parameters)
    most = min(num_blocks - len(protected), num_blocks - 1)
    found: dict[tuple[tuple[int, ...], float], Request] = {}
    for field, target, counts in _asked(search, size, protected):
        if not 1 <= counts[0] <= counts[-1] <= most:
            raise BadInputError(
                f"{field} removes {counts[0] or counts[-1]} of {num_blocks} blocks; allowed are 1 to {most}, since "
                f"{len(protected)} are protected (pruning.protect_first, pruning.protect_last)"
            )
        found[counts, target.ratio] = Request(target=target, counts=counts)
    return tuple(found[key] for key in sorted(found))


def count_of(request: Request, scores: BlockScores, size: ModelSize) -> int:
    """The number of blocks whose removal by these scores comes nearest to the target; the larger of two that are
    equally near."""
    return _nearest(request.target.ratio, [(count, _share(scores.removed(count), size)) for count in request.counts])


def _asked(
    search: SearchSection, size: ModelSize, protected: tuple[int, ...]
) -> Iterator[tuple[str, Target, tuple[int, ...]]]:
    num_blocks = len(size.block_parameters)
    of = "" if search.of == "blocks" else f" (search.of: {search.of})"
    asked = search.ratios
    ratios = _ratios_between(asked, search.of, size) if isinstance(asked, Range) else asked
    if not ratios and asked:
        raise BadInputError(f"search.ratios: {asked} holds no whole number of {num_blocks} blocks{of}")
    for ratio in ratios:
        if search.of == "blocks":
            counts: tuple[int, ...] = (removed_count(ratio, num_blocks),)
        else:
            counts = _possible_counts(ratio, size, protected)
        yield f"search.ratios: {ratio}{of}", Target(of=search.of, ratio=ratio), counts
    for count in search.removed_blocks:
        yield f"search.removed_blocks: {count}", Target(of="blocks", ratio=count / num_blocks), (count,)


def _ratios_between(asked: Range[float], of: str, size: ModelSize) -> tuple[float, ...]:
    """The ratio of each number of blocks between two ratios; of parameters or bytes, that of blocks of mean size."""
    num_blocks = len(size.block_parameters)
    of_blocks = 1.0 if of == "blocks" else sum(size.block_parameters) / size.without(()).parameters
    ratios = (count * of_blocks / num_blocks for count in range(1, num_blocks))
    return tuple(ratio for ratio in ratios if asked.low <= ratio <= asked.high)


def _possible_counts(ratio: float, size: ModelSize, protected: tuple[int, ...]) -> tuple[int, ...]:
    """From the fewest blocks that reach the ratio, the largest ones, to the most. One more than there are where even
    all of them fall short by more than half a block."""
    sizes = sorted(number for block, number in enumerate(size.block_parameters) if block not in protected)
    total = size.without(()).parameters
    if Fraction(str(ratio)) * total > sum(sizes) + Fraction(min(sizes, default=0), 2):
        return (len(sizes) + 1,)
    bounds = []
    for ordered in (sizes[::-1], sizes):
        shares = [(count, Fraction(sum(ordered[:count]), total)) for count in range(len(ordered) + 1)]
        bounds.append(_nearest(ratio, shares))
    return tuple(range(bounds[0], bounds[1] + 1))


def _share(removed: tuple[int, ...], size: ModelSize) -> Fraction:
    return Fraction(sum(size.block_parameters[block] for block in removed), size.without(()).parameters)


def _nearest(ratio: float, shares: list[tuple[int, Fraction]]) -> int:
    asked = Fraction(str(ratio))  # exact, so that halves are halves
    return min(shares, key=lambda counted: (abs(counted[1] - asked), -counted[0]))[0]
