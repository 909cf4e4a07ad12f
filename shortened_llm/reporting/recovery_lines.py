"""Recovery curves in the report: a fit to each candidate with enough rungs, and what it takes to come to a loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shortened_llm.records import EvalScores
from shortened_llm.reporting import formats
from shortened_llm.reporting.race import Candidate, TargetRace
from shortened_llm.reporting.recovery import LEAST_RUNGS, PowerLaw, fit_power_laws, interval, resampled_losses
from shortened_llm.reporting.rows import TrialRow

RESAMPLES = 1000
"""Bootstrap samples of the selection documents behind each interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What one candidate takes to come to one loss."""

    tokens: float
    """Infinite where its curve never does."""
    interval: tuple[float, float]
    """95 %."""
    seconds_per_token: float
    """Accelerator seconds of its longest run / tokens."""
    is_extrapolated: bool
    """Whether it lies beyond the longest run, which did not come to the loss."""

    @property
    def in_tokens(self) -> str:
        """`33 k (31 k to never)`"""
        return self._written(formats.compact, 1.0)

    @property
    def in_hours(self) -> str:
        """In accelerator hours."""
        return self._written(formats.hours, self.seconds_per_token)

    def _written(self, write: Callable[[float], str], factor: float) -> str:
        found = [write(value * factor) if value < math.inf else "never" for value in (self.tokens, *self.interval)]
        return f"{found[0]} ({found[1]} to {found[2]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryLine:
    """One candidate with its curve."""

    row: TrialRow
    """Its trial of the highest rung."""
    law: PowerLaw
    floor: tuple[float, float]
    """95 % interval of E."""
    exponent: tuple[float, float]
    """95 % interval of beta."""
    reaches: tuple[Reach, ...]
    """One for each level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecovery:
    """The curves of one target."""

    race: TargetRace
    levels: tuple[tuple[str, float], ...]
    """What a loss is, and the loss, in nats."""
    lines: tuple[RecoveryLine, ...]
    num_short: int
    """Candidates with too few rungs for a curve, or that share no documents with the best."""


def target_recovery(race: TargetRace, dense: EvalScores) -> TargetRecovery:
    """Fit a curve to each candidate that ended on enough rungs, to the documents that all were measured on.

    Losses to come to are measured on the same resampled documents as the curves: how hard these are cancels out.

    Args:
        dense: selection scores of the dense model.
    """
    points = {one.last.number: _points(one) for one in race.candidates}
    long = [rows for rows in points.values() if len(rows) >= LEAST_RUNGS]
    best = race.best.trial.result if race.best else None
    # Together, so that all are measured on the same documents.
    models = [_scores(row) for rows in long for row in rows]
    losses = resampled_losses([best.after, dense, *models], RESAMPLES) if best and long else None
    if losses is None or race.best is None:
        return TargetRecovery(race=race, levels=(), lines=(), num_short=len(points))
    of_best, of_dense = losses[:, 0], losses[:, 1]
    levels = {f"that of the best, #{race.best.number}": of_best}
    if of_dense[0] < of_best[0]:
        levels["half-way from it to the dense model"] = (of_best + of_dense) / 2
    lines, place = [], 2
    for rows in long:
        lines.append(_line(rows, losses[:, place : place + len(rows)], list(levels.values())))
        place += len(rows)
    return TargetRecovery(
        race=race,
        levels=tuple((name, float(of[0])) for name, of in levels.items()),
        lines=tuple(lines),
        num_short=len(points) - len(long),
    )


def _points(candidate: Candidate) -> list[TrialRow]:
    """Its trials with a loss, each with other tokens."""
    return list({row.tokens: row for row in candidate.rows if row.selection_nll is not None and row.tokens}.values())


def _scores(row: TrialRow) -> EvalScores:
    assert row.trial.result is not None
    return row.trial.result.after


def _line(rows: list[TrialRow], losses: NDArray[np.float64], levels: list[NDArray[np.float64]]) -> RecoveryLine:
    last, tokens = rows[-1], [float(row.tokens or 0) for row in rows]
    law, *resampled = fit_power_laws(tokens, losses)
    reaches = []
    for level in levels:
        found = law.tokens_to(level[0])
        reaches.append(
            Reach(
                tokens=found,
                interval=interval([one.tokens_to(loss) for one, loss in zip(resampled, level[1:], strict=True)]),
                seconds_per_token=(last.accelerator_seconds or 0.0) / tokens[-1],
                is_extrapolated=found > tokens[-1] and losses[0, -1] > level[0],
            )
        )
    return RecoveryLine(
        row=last,
        law=law,
        floor=interval([one.floor for one in resampled]),
        exponent=interval([one.exponent for one in resampled]),
        reaches=tuple(reaches),
    )
