"""The simulation of a search against what can be worked out by hand, and against its closed form."""

import math
from statistics import mean

import numpy as np
import pytest

from tests.benchmarks.search.grid import read_points, recorded
from tests.benchmarks.search.replay import Grid, ours, run
from tests.benchmarks.search.simulation import Costs, simulate, trial_spent

PARTS = (100.0, 100.0, 50.0)


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid(read_points(recorded("tiny")))


@pytest.mark.parametrize("slots", [1, 4])
def test_without_costs_it_is_the_replay(grid: Grid, slots: int) -> None:
    makespan, spent = simulate(
        grid, ours(grid, grid.candidates), lambda trial: [grid.new_tokens(trial)], Costs(), slots
    )
    replayed = run(grid, ours(grid, grid.candidates), grid.new_tokens, slots)
    assert (makespan, spent.training) == (replayed.makespan, replayed.tokens)


def test_every_second_is_accounted_for(grid: Grid) -> None:
    """One slot that is never ended is busy from its boot to the end: what it spent is the makespan."""
    costs = Costs(boot=60, handover=5, start=10, load=3, restore=4, stall=1, write=20, finish=7, evaluate=9,
                  loss_rate=1 / 500)  # fmt: skip
    makespan, spent = simulate(
        grid, ours(grid, grid.candidates), lambda trial: PARTS, costs, 1, np.random.default_rng(0)
    )
    assert makespan == pytest.approx(spent.total)
    assert spent.training % sum(PARTS) == 0
    assert spent.lost > 0
    assert spent.idle == 0


@pytest.mark.parametrize("parts", [(250.0,), (100.0, 150.0)])
def test_losses_take_as_long_as_their_closed_form(parts: tuple[float, ...]) -> None:
    """What begins anew after each loss takes (1 / rate + boot) (exp(rate x seconds) - 1) on average (Daly 2006, Future
    Generation Computer Systems 22); a part behind a checkpoint needs no start unless it is lost once."""
    rate, boot, start = 1 / 200, 60.0, 20.0

    def anew(part: float) -> float:
        return (1 / rate + boot) * math.expm1(rate * (start + part))

    expected = anew(parts[0])
    for part in parts[1:]:
        expected += -math.expm1(-rate * part) * (1 / rate + boot + anew(part))
    costs, rng = Costs(boot=boot, start=start, loss_rate=rate), np.random.default_rng(0)
    assert mean(trial_spent(parts, costs, rng).total for _ in range(20_000)) == pytest.approx(expected, rel=0.02)
