"""From scores of heads and channels to widths that reach a target."""

from dataclasses import replace

import numpy as np
import pytest

from shortened_llm.errors import BadInputError
from shortened_llm.pruning.width import narrow
from shortened_llm.records import ModelSize, Narrowing, Target, WidthScores, WidthsTransform, packed, unpacked

BLOCKS, GROUPS, CHANNELS, GROUP, CHANNEL = 4, 4, 100, 500, 30
SIZE = ModelSize(
    block_parameters=(GROUPS * GROUP + CHANNELS * CHANNEL + 10,) * BLOCKS,
    width_parameters=(GROUP, CHANNEL),
    other_parameters=1000,
    bytes_per_parameter=2,
)
TOTAL = SIZE.without(()).parameters


def scores(parts: str = "both", allocation: str = "uniform", round_to: int = 1, seed: int = 0) -> WidthScores:
    generator = np.random.default_rng(seed)
    groups, channels = generator.random((BLOCKS, GROUPS)), generator.random((BLOCKS, CHANNELS))
    return WidthScores(
        criterion="flap",
        groups=tuple(map(packed, groups.tolist())),
        channels=tuple(map(packed, channels.tolist())),
        narrowing=Narrowing(parts=parts, allocation=allocation, round_to=round_to),  # type: ignore[arg-type]
        protocol="",
        fingerprint="",
    )


def asked(ratio: float) -> Target:
    return Target(of="parameters", ratio=ratio)


def removed(transform: WidthsTransform) -> int:
    return TOTAL - SIZE.after((transform,)).parameters


def widths(transform: WidthsTransform) -> list[tuple[int, int]]:
    return [(len(transform.kept_groups(b)), len(transform.kept_channels(b))) for b in range(BLOCKS)]


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.7])
@pytest.mark.parametrize("parts", ["both", "mlp"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_targets_are_met_within_a_unit(ratio: float, parts: str, allocation: str) -> None:
    if parts == "mlp" and ratio > 0.5:
        pytest.skip("the channels alone are fewer")
    transform = narrow(scores(parts, allocation), asked(ratio), SIZE)
    assert abs(removed(transform) - ratio * TOTAL) <= (BLOCKS * CHANNEL / 2 if allocation == "uniform" else GROUP / 2)
    if parts == "mlp":
        assert all(groups == GROUPS for groups, _ in widths(transform))
    assert len(set(widths(transform))) == 1 or allocation == "global"


def test_the_lowest_scores_go() -> None:
    given = scores()
    transform = narrow(given, asked(0.4), SIZE)
    for block in range(BLOCKS):
        for values, kept in (
            (unpacked(given.groups[block]), transform.kept_groups(block)),
            (unpacked(given.channels[block]), transform.kept_channels(block)),
        ):
            gone = [value for unit, value in enumerate(values) if unit not in kept]
            assert max(gone) <= min(values[unit] for unit in kept)


def test_channels_carry_what_rounds_to_no_head() -> None:
    """5 % is a fifth of a head."""
    (first, *_) = widths(narrow(scores(), asked(0.05), SIZE))
    assert first[0] == GROUPS
    assert first[1] < CHANNELS


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_channels_are_kept_in_multiples(allocation: str) -> None:
    transform = narrow(scores("mlp", allocation, round_to=16), asked(0.3), SIZE)
    assert all(channels % 16 == 0 or channels == CHANNELS for _, channels in widths(transform))
    assert abs(removed(transform) - 0.3 * TOTAL) <= 16 * CHANNEL * (BLOCKS / 2 if allocation == "uniform" else 1 / 2)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_protected_blocks_keep_their_width_and_the_others_carry_it(allocation: str) -> None:
    given = scores("mlp", allocation)
    given = replace(given, narrowing=replace(given.narrowing, protect_first=1, protect_last=1))
    transform = narrow(given, asked(0.2), SIZE)
    assert [widths(transform)[block] for block in (0, 3)] == [(GROUPS, CHANNELS)] * 2
    assert all(channels < CHANNELS for _, channels in widths(transform)[1:3])
    assert abs(removed(transform) - 0.2 * TOTAL) <= CHANNEL
    # Each of the others by its own scores.
    for block in (1, 2) if allocation == "uniform" else ():
        lowest = np.argsort(unpacked(given.channels[block]))[: CHANNELS - len(transform.kept_channels(block))]
        assert set(lowest.tolist()) == set(range(CHANNELS)) - set(transform.kept_channels(block))


def test_one_threshold_over_all_blocks() -> None:
    """A block whose channels all vary alike but for ten loses these, whichever block it is."""
    values = np.ones((BLOCKS, CHANNELS)) * np.linspace(1, 1.01, CHANNELS)
    values[1, 40:50] = 0
    given = scores("mlp", "global")
    given = WidthScores(
        criterion="flap", groups=given.groups, channels=tuple(map(packed, values.tolist())), narrowing=given.narrowing,
        protocol="", fingerprint="",
    )  # fmt: skip
    transform = narrow(given, asked(10 * CHANNEL / TOTAL), SIZE)
    assert [len(transform.kept_channels(block)) for block in range(BLOCKS)] == [100, 90, 100, 100]
    assert not set(range(40, 50)) & set(transform.kept_channels(1))


@pytest.mark.parametrize(
    ("given", "ratio", "words"),
    [
        (scores(round_to=64), 0.01, "removes none of the 4 key-value heads and 100 channels"),
        (scores("mlp"), 0.7, "would remove 0 of 4 key-value heads and 1.. of 100 channels"),
        (scores("attention"), 0.6, "would remove 6 of 4 key-value heads"),
        (scores("mlp", "global"), 0.9, "asks for"),
        (scores("mlp", "global"), 0.0001, "asks for"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(given: WidthScores, ratio: float, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        narrow(given, asked(ratio), SIZE)
