"""Racing: the bound at any stopping time, the decisions, and the text it saves."""

from dataclasses import replace

import numpy as np
import pytest

from shortened_llm.scoring.confidence import resampled_cuts, surely_negative
from shortened_llm.scoring.ppl import ppl_scores
from shortened_llm.scoring.racing import (
    ALPHA,
    Slots,
    open_blocks,
    raced_cuts,
    raced_scores,
    replay,
    sequences_read,
)


@pytest.mark.parametrize("distribution", ["normal", "mean of skewed losses"])
def test_the_test_holds_at_every_look(distribution: str) -> None:
    """Differences with mean 0: in few runs does any of 299 looks see one; an interval of fixed size often does."""
    generator = np.random.default_rng(1)
    alpha, runs = 0.1, 1000
    if distribution == "normal":
        values = generator.normal(size=(300, runs))
    else:
        values = generator.gamma(32, size=(300, runs)) - 32  # what 32 independent exponential losses add up to
    ever_wrong, fixed_wrong = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
    for number in range(2, 301):
        seen = values[:number]
        ever_wrong |= surely_negative(seen, alpha, horizon=40) | surely_negative(-seen, alpha, horizon=40)
        if number >= 30:
            error = np.abs(seen.mean(axis=0))
            fixed_wrong |= error > 1.645 * seen.std(axis=0, ddof=1) / np.sqrt(number)
    assert 0.01 < ever_wrong.mean() <= alpha + 0.02
    assert fixed_wrong.mean() > 3 * alpha


def test_the_test_sees_what_is_there() -> None:
    values = np.random.default_rng(0).normal(-0.5, 1, size=(100, 200))
    assert surely_negative(values, 0.05, horizon=40).mean() > 0.9
    assert not surely_negative(-values, 0.05, horizon=40).any()
    assert not surely_negative(np.zeros((9, 1)), 0.05, horizon=40).any()
    constant = [surely_negative(np.full((number, 1), -1.0), 0.05, horizon=40)[0] for number in (2, 3, 30)]
    assert constant == [False, False, True], "not even without variance do three values prove anything"


def test_slots_fill_from_both_sides() -> None:
    """Blocks in true order 0 < 1 < {2, 3} < 4, of which 2 and 3 cannot be told apart."""
    lower = np.zeros((5, 5), dtype=bool)
    for low in range(5):
        for high in range(low + 1, 5):
            lower[low, high] = (low, high) != (2, 3)
    slots = Slots(count=3, open=set(range(5)))
    slots.decide(lower)
    assert (slots.going, slots.open, slots.staying) == ({0, 1}, {2, 3}, {4})
    slots = Slots(count=2, open=set(range(5)))
    slots.decide(lower)
    assert (slots.going, slots.open, slots.staying) == ({0, 1}, set(), {2, 3, 4})


def simulated_race(costs: np.ndarray, counts: tuple[int, ...], protected: tuple[int, ...], size: int) -> np.ndarray:
    """Hide from full costs [sequences, 1 + blocks] what a race would not have read."""
    raced = np.empty((0, costs.shape[1]))
    for start in range(0, len(costs), size):
        blocks = open_blocks(replay(raced[:, 1:], counts, protected, size)) if start else range(costs.shape[1] - 1)
        if not blocks:
            break
        batch = np.full_like(costs[start : start + size], np.nan)
        batch[:, [0, *(1 + block for block in blocks)]] = costs[start : start + size][
            :, [0, *(1 + block for block in blocks)]
        ]
        raced = np.concatenate([raced, batch])
    return raced


MEANS = np.array([0.1, 0.02, 0.3, 0.33, 0.9, 1.2, 2.0, 0.0])


@pytest.fixture
def costs() -> np.ndarray:
    """Losses of 8 blocks on 400 sequences: a large part common to all, which pairing takes out."""
    generator = np.random.default_rng(3)
    common = generator.normal(3, 1, size=(400, 1))
    own = MEANS + generator.normal(0, 0.05, size=(400, 8))
    return np.concatenate([common, common + own], axis=1)


def test_a_race_reads_more_only_for_the_blocks_at_the_cut(costs: np.ndarray) -> None:
    counts, protected, size = (3,), (7,), 10
    raced = simulated_race(costs, counts, protected, size)
    read = sequences_read(raced)
    assert len(raced) < 400, "the race ends when all is decided"
    assert read[2] == read[3] == len(raced) > 50
    assert all(read[block] <= 20 for block in (0, 1, 4, 5, 6, 7))
    slots = replay(raced[:, 1:], counts, protected, size)
    scores = raced_scores(raced, slots, is_loss=True)
    assert scores.sets == ((0, 1, 2),)
    assert scores.scores == pytest.approx(np.exp(costs[: len(raced), 0].mean() + MEANS), rel=0.06)
    (cut,) = raced_cuts(raced, slots, scores.sets)
    assert cut.removed == (0, 1, 2)
    assert cut.probabilities == (1, 1, 1, 0, 0, 0, 0, 0)
    assert cut.undecided == ()


def test_a_race_that_ends_early_says_what_is_undecided(costs: np.ndarray) -> None:
    counts, protected, size = (3,), (7,), 10
    raced = simulated_race(costs[:30], counts, protected, size)
    slots = replay(raced[:, 1:], counts, protected, size)
    (cut,) = raced_cuts(raced, slots, raced_scores(raced, slots, is_loss=False).sets or ())
    assert len(raced) == 30
    assert cut.removed in ((0, 1, 2), (0, 1, 3))
    assert cut.probabilities[2] + cut.probabilities[3] == pytest.approx(1)
    assert cut.probabilities[0] == cut.probabilities[1] == 1
    assert cut.probabilities[7] == 0, "protected"
    assert cut.open == (2, 3)
    assert replace(cut, probabilities=(1.0,) * 8).undecided == (2, 3), "open, however likely"


def test_wrong_decisions_are_rare() -> None:
    """200 races between blocks that differ by a tenth of their noise, with skewed noise."""
    wrong = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        noise = generator.exponential(0.5, size=(120, 4)) - 0.5
        costs = np.concatenate([np.zeros((120, 1)), np.array([0, 0.05, 0.1, 0.15]) + noise], axis=1)
        raced = simulated_race(costs, (2,), (), 10)
        (slots,) = replay(raced[:, 1:], (2,), (), 10)
        wrong += not slots.going <= {0, 1} or not slots.staying <= {2, 3}
    assert wrong / 200 <= ALPHA + 0.02


def test_resampling_tells_the_decided_from_the_undecided() -> None:
    generator = np.random.default_rng(0)
    nll = 3 + np.array([0, 0.1, 0.5, 0.505, 1.5, 0.0]) + generator.normal(0, 0.05, size=(10, 6))
    cuts = resampled_cuts(nll, ppl_scores, (1, 2), protected=(4,))
    assert cuts is not None
    assert [cut.count for cut in cuts] == [1, 2]
    assert cuts[0].removed == (0,)
    assert cuts[0].probabilities == (1, 0, 0, 0, 0), "the protected block is the lowest, and never goes"
    assert cuts[1].undecided == (1, 2)
    assert sum(cuts[1].probabilities) == pytest.approx(2)
    assert resampled_cuts(nll[:1], ppl_scores, (1,), protected=()) is None
