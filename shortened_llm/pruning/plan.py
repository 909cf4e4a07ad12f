"""From scores and targets to distinct plans."""

from collections.abc import Iterable
from dataclasses import dataclass

from shortened_llm.config import SearchSection
from shortened_llm.pruning.target import count_of, requests
from shortened_llm.pruning.weight.target import weight_targets
from shortened_llm.pruning.width import narrow
from shortened_llm.records import (
    Bin,
    ModelSize,
    PlanLabel,
    PrunePlan,
    Scores,
    Target,
    Transform,
    WeightRanking,
    WidthScores,
    removal,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one ranking chooses for one target."""

    label: PlanLabel
    transforms: tuple[Transform, ...]


def choices(search: SearchSection, scores: Iterable[Scores], size: ModelSize) -> tuple[Choice, ...]:
    """What every ranking chooses for every target; of single weights it is not known yet.

    Raises:
        BadInputError: see `target.requests`, `width.narrow` and `weight.target.weight_targets`.
    """
    found: list[Choice] = []
    num_blocks = len(size.block_parameters)
    for criterion in scores:
        if isinstance(criterion, WeightRanking):
            asked = (request.target for request in requests(search, size, (), "weight"))
            for target in weight_targets(criterion.pattern, asked, size):
                found.append(Choice(label=_label(criterion, target), transforms=()))
            continue
        protected = () if isinstance(criterion, WidthScores) else criterion.protected
        for request in requests(search, size, protected, criterion.unit):
            if isinstance(criterion, WidthScores):
                transforms: tuple[Transform, ...] = (narrow(criterion, request.target, size),)
            else:
                removed = criterion.removed(count_of(request, criterion, size))
                transforms = removal(criterion.unit, removed, num_blocks)
            found.append(Choice(label=_label(criterion, request.target), transforms=transforms))
    return tuple(found)


def _label(ranking: Scores, target: Target) -> PlanLabel:
    return PlanLabel(
        criterion=ranking.criterion,
        target=target,
        unit=ranking.unit,
        calibration=ranking.calibration,
        settings=ranking.settings,
    )


def make_plans(chosen: Iterable[Choice], size: ModelSize) -> tuple[PrunePlan, ...]:
    """One plan per distinct set of transforms, with the labels of every (criterion, target) that leads to it.

    The smallest models come last; of equal size, in the order of the criteria.
    """
    labels: dict[tuple[Transform, ...], list[PlanLabel]] = {}
    for one in chosen:
        labels.setdefault(one.transforms, []).append(one.label)
    plans = [plan_of(transforms, tuple(its_labels), size) for transforms, its_labels in labels.items()]
    return tuple(sorted(plans, key=lambda plan: -plan.size.parameters))


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
    transforms = removal("block", removed, len(size.block_parameters))
    return plan_of(transforms, (PlanLabel(criterion=label, target=target),), size)


def plan_of(transforms: tuple[Transform, ...], labels: tuple[PlanLabel, ...], size: ModelSize) -> PrunePlan:
    """The plan of these transforms of the dense model, and what asked for it."""
    return PrunePlan(transforms=transforms, labels=labels, size=size.after(transforms), dense=size.without(()))
