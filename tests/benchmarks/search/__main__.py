"""What rungs save and what they cost: `python -m tests.benchmarks.search [--json FILE]`.

Replays recorded grids of 36 candidates, on the tiny model and on SmolLM2-135M (`record.py`), under four searches, over
random orders of the candidates and 1, 4 and 16 slots. Goal: what the grid would choose, or a candidate that is not told
apart from it, in 95 of 100 orders for at most 40 % of the grid's tokens.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.search.grid import GRIDS, read_points, recorded
from tests.benchmarks.search.replay import Grid, Outcome, asha, full_grid, ours, random_part, run

ORDERS, SLOTS = 60, (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--orders", type=int, default=ORDERS)
    arguments = parser.parse_args()
    figures = {name: replay_all(name, arguments.orders) for name in GRIDS}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def replay_all(name: str, orders: int) -> dict[str, dict[str, float]]:
    """What `summary` says of every search with every number of slots, printed too."""
    grid = Grid(read_points(recorded(name)))
    print(f"{name}: {len(grid.candidates)} candidates, {orders} orders; tokens and makespan as shares of the grid's")
    print(
        f"{'slots':>5} {'search':<8} {'tokens':>7} {'makespan':>8} {'right':>6} {'regret, nats: mean':>18} {'worst':>7}"
    )
    figures = {}
    for slots in SLOTS:
        found: dict[str, list[Outcome]] = {search: [] for search in ("grid", "random", "asha", "ours")}
        for seed in range(orders):
            order = np.random.default_rng(seed).permutation(grid.candidates).tolist()
            for search, outcome in search_all(grid, order, slots).items():
                found[search].append(outcome)
        for search, outcomes in found.items():
            figures[f"{search}, {slots} slots"] = line = summary(outcomes, found["grid"])
            print(
                f"{slots:>5} {search:<8} {line['tokens']:>7.1%} {line['makespan']:>8.1%} {line['right']:>6.1%} "
                f"{line['regret']:>18.4f} {line['worst']:>7.4f}",
                flush=True,
            )
    return figures


def search_all(grid: Grid, order: Sequence[int], slots: int) -> dict[str, Outcome]:
    """Every search on one order of the candidates."""

    def full(trial: tuple[int, float]) -> int:
        return grid.points[trial].tokens

    own = run(grid, ours(grid, order), grid.new_tokens, slots)
    return {
        "grid": run(grid, full_grid(order), full, slots),
        "random": run(grid, random_part(grid, order, own.tokens), full, slots),
        "asha": run(grid, asha(grid, order), grid.new_tokens, slots),
        "ours": own,
    }


def summary(outcomes: Sequence[Outcome], grid: Sequence[Outcome]) -> dict[str, float]:
    """Means over the orders, with tokens and makespan as shares of the grid's; the regret of searches that chose
    something for every target."""
    regrets = [outcome.regret for outcome in outcomes if math.isfinite(outcome.regret)]
    return {
        "tokens": statistics.mean(o.tokens / g.tokens for o, g in zip(outcomes, grid, strict=True)),
        "makespan": statistics.mean(o.makespan / g.makespan for o, g in zip(outcomes, grid, strict=True)),
        "right": statistics.mean(outcome.is_right for outcome in outcomes),
        "regret": statistics.mean(regrets) if regrets else math.nan,
        "worst": max(regrets, default=math.nan),
    }


if __name__ == "__main__":
    main()
