"""From ratios to numbers of blocks."""

import pytest

from shortened_llm.config import SearchSection
from shortened_llm.errors import BadInputError
from shortened_llm.pruning.target import Request, removed_count, requests
from shortened_llm.records import ModelSize, Target

EVEN = ModelSize(block_parameters=(10,) * 8, other_parameters=20, bytes_per_parameter=2)
UNEVEN = ModelSize(block_parameters=(10, 20, 30, 40, 50, 60, 70, 80), other_parameters=140, bytes_per_parameter=2)


@pytest.mark.parametrize(
    ("ratio", "blocks", "count"),
    [(0.2, 30, 6), (0.4, 30, 12), (0.25, 10, 3), (0.35, 10, 4), (0.2, 32, 6), (0.27, 32, 9), (0.35, 32, 11),
     (0.45, 32, 14), (0.05, 10, 1), (0.04, 10, 0), (0.15, 30, 5), (0.145, 100, 15)],
)  # fmt: skip
def test_ratios_are_rounded_half_up(ratio: float, blocks: int, count: int) -> None:
    assert removed_count(ratio, blocks) == count


def test_a_count_and_its_ratio_are_one_request() -> None:
    found = requests(SearchSection(ratios=(0.25,), removed_blocks=(2, 3)), EVEN, (), "block")
    assert found == (
        Request(target=Target(of="blocks", ratio=0.25), unit="block", counts=(2,)),
        Request(target=Target(of="blocks", ratio=3 / 8), unit="block", counts=(3,)),
    )


def test_blocks_of_one_size_leave_no_choice_of_their_number() -> None:
    """Of 100 parameters 80 lie in the blocks; halves are rounded up."""
    ratios = {0.14: 1, 0.15: 2, 0.24: 2, 0.25: 3, 0.3: 3}
    found = requests(SearchSection(ratios=tuple(ratios), of="parameters"), EVEN, (), "block")
    assert {one.target.ratio: one.counts for one in found} == {ratio: (count,) for ratio, count in ratios.items()}


def test_blocks_of_several_sizes_leave_a_range() -> None:
    """A quarter of 500: between the two largest blocks and the five smallest."""
    (found,) = requests(SearchSection(ratios=(0.25,), of="parameters"), UNEVEN, (), "block")
    assert found == Request(target=Target(of="parameters", ratio=0.25), unit="block", counts=(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("of", "low", "high", "counts"),
    [("blocks", 0.25, 0.5, (2, 3, 4)), ("blocks", 0.2, 0.3, (2,)), ("parameters", 0.2, 0.4, (2, 3, 4))],
)
def test_a_range_holds_every_number_of_blocks(of: str, low: float, high: float, counts: tuple[int, ...]) -> None:
    section = SearchSection(ratios={"low": low, "high": high}, of=of, sampler="optuna", trials=9)
    found = requests(section, EVEN, (), "block")
    assert [one.counts for one in found] == [(count,) for count in counts]
    assert all(low <= one.target.ratio <= high and one.target.of == of for one in found)


@pytest.mark.parametrize(("low", "high", "said"), [(0.26, 0.3, "no whole number of 8"), (0.2, 0.9, "removes 7 of 8")])
def test_a_range_without_possible_targets_is_refused(low: float, high: float, said: str) -> None:
    section = SearchSection(ratios={"low": low, "high": high}, sampler="optuna", trials=9)
    with pytest.raises(BadInputError, match=said):
        requests(section, EVEN, (0, 7), "block")


@pytest.mark.parametrize(
    ("section", "word"),
    [
        (SearchSection(ratios=(0.05,)), "removes 0 of 8"),
        (SearchSection(ratios=(0.9,)), "removes 7 of 8"),
        (SearchSection(removed_blocks=(7,)), "search.removed_blocks: 7"),
        (SearchSection(ratios=(0.99,)), "removes 8 of 8"),
        (SearchSection(ratios=(0.01,), of="parameters"), r"search.ratios: 0.01 \(search.of: parameters\) removes"),
        (SearchSection(ratios=(0.7,), of="bytes"), r"search.ratios: 0.7 \(search.of: bytes\) removes 7 of 8"),
    ],
)
def test_impossible_targets_are_refused(section: SearchSection, word: str) -> None:
    with pytest.raises(BadInputError, match=word):
        requests(section, EVEN, (0, 7), "block")
