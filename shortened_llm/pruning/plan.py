"""From scores and targets to distinct plans."""

from collections.abc import Iterable

from shortened_llm.config import SearchSection
from shortened_llm.pruning.target import count_of, requests
from shortened_llm.records import Bin, BlockScores, BlocksTransform, ModelSize, PlanLabel, PrunePlan, Target


def make_plans(search: SearchSection, scores: Iterable[BlockScores], size: ModelSize) -> tuple[PrunePlan, ...]:
    """One plan per distinct set of removed blocks, with the labels of every (criterion, target) that leads to it.

    The shortest models come last; of equal size, in the order of the criteria.

    Raises:
        BadInputError: see `target.requests`.
    """
    labels: dict[tuple[int, ...], list[PlanLabel]] = {}
    for criterion in scores:
        for request in requests(search, size, criterion.protected):
            label = PlanLabel(
                criterion=criterion.criterion,
                target=request.target,
                calibration=criterion.calibration,
                settings=criterion.settings,
            )
            removed = criterion.removed(count_of(request, criterion, size))
            labels.setdefault(removed, []).append(label)
    by_size = sorted(labels.items(), key=lambda item: len(item[0]))
    return tuple(plan_of(removed, tuple(its_labels), size) for removed, its_labels in by_size)


def one_of_each_target(plans: Iterable[PrunePlan]) -> tuple[PrunePlan, ...]:
    """Plans that stand for the shapes of all targets, the first of each."""
    found: dict[Bin, PrunePlan] = {}
    for plan in plans:
        for target in plan.targets:
            found.setdefault(target, plan)
    return tuple({plan.transforms: plan for plan in found.values()}.values())


def dense_plan(size: ModelSize) -> PrunePlan:
    """The plan that removes nothing."""
    return _without_criterion((), "dense", size)


def chosen_plan(removed: tuple[int, ...], size: ModelSize) -> PrunePlan:
    """The plan of a user who names the blocks."""
    return _without_criterion(removed, "chosen", size)


def _without_criterion(removed: tuple[int, ...], label: str, size: ModelSize) -> PrunePlan:
    target = Target(of="blocks", ratio=len(removed) / len(size.block_parameters))
    return plan_of(removed, (PlanLabel(criterion=label, target=target),), size)


def plan_of(removed: tuple[int, ...], labels: tuple[PlanLabel, ...], size: ModelSize) -> PrunePlan:
    """The plan that removes these blocks, ascending, and what asked for it."""
    return PrunePlan(
        transforms=(BlocksTransform.without(removed, len(size.block_parameters)),) if removed else (),
        labels=labels,
        size=size.without(removed),
        dense=size.without(()),
    )
