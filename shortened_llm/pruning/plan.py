"""From scores and ratios to distinct plans."""

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

from shortened_llm.config import SearchSection
from shortened_llm.errors import BadInputError
from shortened_llm.records import BlockScores, BlocksTransform, ModelSize, PlanLabel, PrunePlan


def removed_count(ratio: float, num_blocks: int) -> int:
    """Blocks that a ratio removes: `ratio * num_blocks`, rounded half up in decimal arithmetic."""
    return int((Decimal(str(ratio)) * num_blocks).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def requested_counts(
    search: SearchSection, num_blocks: int, protected: tuple[int, ...]
) -> tuple[tuple[int, float], ...]:
    """(number of blocks to remove, ratio as asked for), ascending; a count asked for twice is one with its ratio.

    Raises:
        BadInputError: a ratio removes no block, or more than the unprotected ones.
    """
    removable = num_blocks - len(protected)
    requested = [(f"search.ratios: {ratio}", removed_count(ratio, num_blocks), ratio) for ratio in search.ratios]
    requested += [(f"search.removed_blocks: {count}", count, count / num_blocks) for count in search.removed_blocks]
    counts: set[tuple[int, float]] = set()
    for field, count, ratio in requested:
        if not 1 <= count <= min(removable, num_blocks - 1):
            raise BadInputError(
                f"{field} removes {count} of {num_blocks} blocks; allowed are 1 to {min(removable, num_blocks - 1)}, "
                f"since {len(protected)} are protected (pruning.protect_first, pruning.protect_last)"
            )
        counts.add((count, ratio))
    return tuple(sorted(counts))


def make_plans(search: SearchSection, scores: Iterable[BlockScores], size: ModelSize) -> tuple[PrunePlan, ...]:
    """One plan per distinct set of removed blocks, with the labels of every (criterion, ratio) that leads to it.

    The shortest models come last; of equal size, in the order of the criteria.

    Raises:
        BadInputError: see `requested_counts`.
    """
    num_blocks = len(size.block_parameters)
    labels: dict[tuple[int, ...], list[PlanLabel]] = {}
    for criterion in scores:
        for count, ratio in requested_counts(search, num_blocks, criterion.protected):
            label = PlanLabel(
                criterion=criterion.criterion,
                ratio=ratio,
                calibration=criterion.calibration,
                settings=criterion.settings,
            )
            labels.setdefault(criterion.removed(count), []).append(label)
    by_size = sorted(labels.items(), key=lambda item: len(item[0]))
    return tuple(_plan(removed, tuple(its_labels), size) for removed, its_labels in by_size)


def dense_plan(size: ModelSize) -> PrunePlan:
    """The plan that removes nothing."""
    return _without_criterion((), "dense", size)


def chosen_plan(removed: tuple[int, ...], size: ModelSize) -> PrunePlan:
    """The plan of a user who names the blocks."""
    return _without_criterion(removed, "chosen", size)


def _without_criterion(removed: tuple[int, ...], label: str, size: ModelSize) -> PrunePlan:
    ratio = len(removed) / len(size.block_parameters)
    return _plan(removed, (PlanLabel(criterion=label, ratio=ratio),), size)


def _plan(removed: tuple[int, ...], labels: tuple[PlanLabel, ...], size: ModelSize) -> PrunePlan:
    kept = tuple(block for block in range(len(size.block_parameters)) if block not in removed)
    return PrunePlan(
        transforms=(BlocksTransform(kept=kept),) if removed else (),
        labels=labels,
        size=size.without(removed),
        dense=size.without(()),
    )
