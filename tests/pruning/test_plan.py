"""Plans: rounding, protection, merging, and what is refused."""

import pytest

from shortened_llm.config import SearchSection
from shortened_llm.pruning.plan import choices, make_plans
from shortened_llm.records import ModelSize, PrunePlan, UnitScores
from tests.conftest import keeping


def scores(criterion: str, order: list[int], protected: tuple[int, ...] = (0, 7)) -> UnitScores:
    values = [0.0] * len(order)
    for rank, block in enumerate(order):
        values[block] = float(rank)
    return UnitScores(
        criterion=criterion, scores=tuple(values), order=tuple(order), standard_errors=None, protected=protected,
        dense_perplexity=None, protocol="", fingerprint="",
    )  # fmt: skip


SIZE = ModelSize(block_parameters=(10, 20, 30, 40, 50, 60, 70, 80), other_parameters=140, bytes_per_parameter=2)


def test_protected_blocks_stay() -> None:
    assert scores("ppl", [0, 7, 3, 1, 2, 4, 5, 6]).removed(3) == (1, 2, 3)


def plans_of(search: SearchSection, given: list[UnitScores]) -> tuple[PrunePlan, ...]:
    return make_plans(choices(search, given, SIZE), SIZE)


def test_equal_plans_merge_and_keep_all_labels() -> None:
    plans = plans_of(
        SearchSection(ratios=(0.25, 0.5)),
        [scores("ppl", [3, 1, 2, 4, 5, 6, 0, 7]), scores("taylor", [1, 3, 5, 6, 2, 4, 0, 7])],
    )
    assert [plan.transforms for plan in plans] == [
        keeping((0, 2, 4, 5, 6, 7)),
        keeping((0, 5, 6, 7)),
        keeping((0, 2, 4, 7)),
    ]
    assert [(label.criterion, label.target.ratio) for label in plans[0].labels] == [("ppl", 0.25), ("taylor", 0.25)]
    assert plans[0].name == "ppl+taylor 25%"
    assert plans[0].removed_blocks == (1, 3)
    assert (plans[0].size.parameters, plans[0].size.num_bytes) == (500 - 20 - 40, 2 * (500 - 20 - 40))
    assert plans[0].parameter_ratio == pytest.approx(60 / 500)
    assert plans[0].block_ratio == pytest.approx(0.25)


def test_two_ratios_of_one_count_are_one_plan_with_both_labels() -> None:
    plans = plans_of(SearchSection(ratios=(0.25, 0.26)), [scores("ppl", [3, 1, 2, 4, 5, 6, 0, 7])])
    assert [[label.target.ratio for label in plan.labels] for plan in plans] == [[0.25, 0.26]]


def test_a_target_of_parameters_takes_as_many_blocks_as_come_nearest() -> None:
    """Of 500 parameters, the blocks have 10, 20, ... 80; a quarter are 125."""
    search = SearchSection(ratios=(0.25,), of="parameters")
    small, large = plans_of(
        search, [scores("ppl", [0, 1, 2, 3, 4, 5, 6, 7]), scores("taylor", [7, 6, 5, 4, 3, 2, 1, 0])]
    )[::-1]
    # 10 + 20 + ... + 50 = 150 is nearer than 100; 80 + 70 = 150, nearer than 80.
    assert (small.removed_blocks, small.size.parameters) == ((1, 2, 3, 4), 360)
    assert (large.removed_blocks, large.size.parameters) == ((5, 6), 370)
    assert small.targets == large.targets == (("parameters", 0.25),)
    assert small.name == "ppl 25% of parameters"
    same = plans_of(SearchSection(ratios=(0.25,), of="bytes"), [scores("ppl", [0, 1, 2, 3, 4, 5, 6, 7])])
    assert [plan.transforms for plan in same] == [small.transforms]
