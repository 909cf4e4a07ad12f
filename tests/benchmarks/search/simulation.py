"""A discrete-event simulation of a search on machines that boot, idle and are lost.

A slot is the group of nodes that one trial trains on; a search has a number of equal slots. Trials are those that the
search asks for (`replay.py`), and a search knows only what has ended. A slot's nodes boot when it is first used, and
again when it was idle for so long that they were ended. A trial then starts its workers, reads a model or checkpoint,
trains from checkpoint to checkpoint, exports and is evaluated. Any of its nodes may be lost until the export is
written, after exponentially distributed times: another node boots, the workers start again, read the newest checkpoint
that was written completely, and what was trained since is trained again.

Left out: what comes before the first trial and after the last (scoring, packing, report), losses of nodes that boot,
idle or wait for an evaluation, notices that let a trial save a checkpoint before its node goes, and trials that go on
with fewer workers.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np

from tests.benchmarks.search.grid import Point
from tests.benchmarks.search.replay import Ask, Grid, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of a slot, but for the rate."""

    boot: float = 0.0
    """From the demand for nodes to nodes that have joined."""
    idle: float = math.inf
    """A slot that was idle for so long loses its nodes, and boots anew when it is used."""
    handover: float = 0.0
    """From the end of a trial to the beginning of the next one on its slot."""
    start: float = 0.0
    """Of a group of workers."""
    load: float = 0.0
    """Reading a model."""
    restore: float = 0.0
    """Reading a checkpoint."""
    stall: float = 0.0
    """That a checkpoint holds up training."""
    write: float = 0.0
    """From the stall to a checkpoint that can be read; training goes on meanwhile."""
    finish: float = 0.0
    """Export."""
    evaluate: float = 0.0
    loss_rate: float = 0.0
    """Losses of a node of the slot per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of slots, by what they went to; all are paid for."""

    training: float = 0.0
    """That counted, each part once."""
    starting: float = 0.0
    """Boots, starts of workers, reading models and checkpoints, but for those behind a lost node."""
    checkpoints: float = 0.0
    finishing: float = 0.0
    """Exports, evaluations, handovers."""
    idle: float = 0.0
    lost: float = 0.0
    """What lost nodes cost: work that was done again, and the boots and starts behind each."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Spent)})

    @property
    def total(self) -> float:
        return sum(getattr(self, one.name) for one in fields(Spent))


def simulate(
    grid: Grid,
    ask: Ask,
    parts: Callable[[Trial], Sequence[float]],
    costs: Costs,
    slots: int,
    rng: np.random.Generator | None = None,
) -> tuple[float, Spent]:
    """Run a search; returns the seconds until its last trial has ended, and what the slots spent.

    Args:
        parts: training seconds of a trial from each checkpoint to the next.
    """
    ended: dict[Trial, Point] = {}
    begun: set[Trial] = set()
    running: list[tuple[float, Trial]] = []
    free: list[float | None] = [None] * slots  # when the slot's last trial ended; the one that ended last comes last
    now, spent = 0.0, Spent()
    while True:
        for trial in ask(ended, begun):
            if trial not in begun and free:
                begun.add(trial)
                ready, made_ready = _ready(now, free.pop(), costs)
                goes_on = grid.below(trial[1]) is not None
                in_trial = trial_spent(parts(trial), costs, rng, goes_on=goes_on)
                spent += made_ready + in_trial
                heapq.heappush(running, (ready + in_trial.total, trial))
        if not running:
            used = sum(end is not None for end in free)
            return now, spent + Spent(idle=used * costs.idle if math.isfinite(costs.idle) else 0.0)
        now, trial = heapq.heappop(running)
        free.append(now)
        ended[trial] = grid.points[trial]


def _ready(now: float, last_end: float | None, costs: Costs) -> tuple[float, Spent]:
    """When a slot can begin a trial, and what it spends until then, behind its last trial."""
    if last_end is None:
        return now + costs.boot, Spent(starting=costs.boot)
    if now - last_end > costs.idle:
        return now + costs.boot, Spent(starting=costs.boot, idle=costs.idle)
    return now + costs.handover, Spent(finishing=costs.handover, idle=now - last_end)


def trial_spent(
    parts: Sequence[float], costs: Costs, rng: np.random.Generator | None = None, *, goes_on: bool = False
) -> Spent:
    """What a trial spends on nodes that are there, and on those that take the place of lost ones.

    Args:
        parts: training seconds from each checkpoint to the next.
        rng: of the losses; needed where there are any.
        goes_on: whether it begins with a checkpoint of another trial.
    """
    first_start = costs.start + (costs.restore if goes_on else costs.load)
    elapsed, written = 0.0, 0
    while True:
        start = costs.start + costs.restore if written else first_start
        ends = list(accumulate((part + costs.stall for part in parts[written:]), initial=start))
        up = ends[-1] + costs.finish
        until_loss = rng.exponential(1 / costs.loss_rate) if rng is not None and costs.loss_rate else math.inf
        if until_loss >= up:
            elapsed += up
            break
        elapsed += until_loss + costs.boot
        written += sum(end + costs.write <= until_loss for end in ends[1:])
    wanted = Spent(
        training=sum(parts),
        starting=first_start,
        checkpoints=costs.stall * len(parts),
        finishing=costs.finish + costs.evaluate,
    )
    return wanted + Spent(lost=max(0.0, elapsed + costs.evaluate - wanted.total))
