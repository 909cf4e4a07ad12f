"""Plans: rounding, protection, merging, and what is refused."""

import pytest

from shortened_llm.config import SearchSection
from shortened_llm.errors import BadInputError
from shortened_llm.pruning.plan import make_plans, removed_count, requested_counts
from shortened_llm.records import BlockScores, ModelSize
from tests.conftest import keeping


def scores(criterion: str, order: list[int], protected: tuple[int, ...] = (0, 7)) -> BlockScores:
    values = [0.0] * len(order)
    for rank, block in enumerate(order):
        values[block] = float(rank)
    return BlockScores(
        criterion=criterion, scores=tuple(values), order=tuple(order), standard_errors=None, protected=protected,
        dense_perplexity=None, protocol="", fingerprint="",
    )  # fmt: skip


SIZE = ModelSize(block_parameters=(10, 20, 30, 40, 50, 60, 70, 80), other_parameters=140, bytes_per_parameter=2)


@pytest.mark.parametrize(
    ("ratio", "blocks", "count"),
    [(0.2, 30, 6), (0.4, 30, 12), (0.25, 10, 3), (0.35, 10, 4), (0.2, 32, 6), (0.27, 32, 9), (0.35, 32, 11),
     (0.45, 32, 14), (0.05, 10, 1), (0.04, 10, 0), (0.15, 30, 5), (0.145, 100, 15)],
)  # fmt: skip
def test_ratios_are_rounded_half_up(ratio: float, blocks: int, count: int) -> None:
    assert removed_count(ratio, blocks) == count


def test_protected_blocks_stay() -> None:
    assert scores("ppl", [0, 7, 3, 1, 2, 4, 5, 6]).removed(3) == (1, 2, 3)


def test_equal_plans_merge_and_keep_all_labels() -> None:
    plans = make_plans(
        SearchSection(ratios=(0.25, 0.5)),
        [scores("ppl", [3, 1, 2, 4, 5, 6, 0, 7]), scores("taylor", [1, 3, 5, 6, 2, 4, 0, 7])],
        SIZE,
    )
    assert [plan.transforms for plan in plans] == [
        keeping((0, 2, 4, 5, 6, 7)),
        keeping((0, 5, 6, 7)),
        keeping((0, 2, 4, 7)),
    ]
    assert [(label.criterion, label.ratio) for label in plans[0].labels] == [("ppl", 0.25), ("taylor", 0.25)]
    assert plans[0].name == "ppl+taylor 25%"
    assert plans[0].removed_blocks == (1, 3)
    assert (plans[0].size.parameters, plans[0].size.num_bytes) == (500 - 20 - 40, 2 * (500 - 20 - 40))
    assert plans[0].parameter_ratio == pytest.approx(60 / 500)
    assert plans[0].block_ratio == pytest.approx(0.25)


def test_a_count_and_its_ratio_are_one_request() -> None:
    assert requested_counts(SearchSection(ratios=(0.25,), removed_blocks=(2, 3)), 8, ()) == ((2, 0.25), (3, 3 / 8))


def test_two_ratios_of_one_count_are_one_plan_with_both_labels() -> None:
    plans = make_plans(SearchSection(ratios=(0.25, 0.26)), [scores("ppl", [3, 1, 2, 4, 5, 6, 0, 7])], SIZE)
    assert [[label.ratio for label in plan.labels] for plan in plans] == [[0.25, 0.26]]


@pytest.mark.parametrize(
    ("section", "word"),
    [
        (SearchSection(ratios=(0.05,)), "removes 0 of 8"),
        (SearchSection(ratios=(0.9,)), "removes 7 of 8"),
        (SearchSection(removed_blocks=(7,)), "search.removed_blocks: 7"),
        (SearchSection(ratios=(0.99,)), "removes 8 of 8"),
    ],
)
def test_impossible_counts_are_refused(section: SearchSection, word: str) -> None:
    with pytest.raises(BadInputError, match=word):
        requested_counts(section, 8, (0, 7))
