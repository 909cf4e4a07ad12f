"""Which model to take, where the user said what it must meet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import Constraints, Experiment, TaskScore
from shortened_llm.reporting import formats
from shortened_llm.reporting.rows import TrialRow

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The best trial of a target, held against the constraints."""

    row: TrialRow
    unmet: tuple[str, ...]
    """Each constraint that it does not meet, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The choice among the best of all targets."""

    chosen: TrialRow | None
    """None where no trial meets every constraint."""
    others: tuple[Verdict, ...]
    """The other ones; those that meet every constraint have none unmet."""
    rule: str
    """By what it was chosen, in words."""


def recommend(experiment: Experiment, rows: Sequence[TrialRow]) -> Recommendation | None:
    """Choose among the best trials of all targets; None where no constraint was given, or where losses decide that
    are not comparable, as those of experiments with other selection texts or metrics.

    With a limit of size or latency the one with the lowest loss is chosen, since a smaller model gains nothing
    more; without one the smallest, since quality alone was limited.
    """
    constraints = experiment.constraints
    if constraints is None:
        return None
    verdicts = [Verdict(row=row, unmet=_unmet(constraints, experiment, row)) for row in rows if row.is_best]
    limited = constraints.max_bytes is not None or constraints.max_latency_ratio is not None
    if limited and len({verdict.row.basis for verdict in verdicts}) > 1:
        return None
    fitting = [verdict.row for verdict in verdicts if not verdict.unmet]
    chosen = min(fitting, key=_loss if limited else _bytes, default=None)
    return Recommendation(
        chosen=chosen,
        others=tuple(verdict for verdict in verdicts if verdict.row is not chosen),
        rule=f"best by {fitting[0].trial.spec.objective.title}" if fitting and limited else "fewest bytes",
    )


def _loss(row: TrialRow) -> tuple[float, int]:
    return (math.inf if row.loss is None else row.loss, row.number)


def _bytes(row: TrialRow) -> tuple[float, int]:
    return (row.plan.size.num_bytes, row.number)


def _unmet(constraints: Constraints, experiment: Experiment, row: TrialRow) -> tuple[str, ...]:
    found = []
    size = row.plan.size.num_bytes
    if constraints.max_bytes is not None and size > constraints.max_bytes:
        found.append(f"{size / GB:.3g} GB, more than {constraints.max_bytes / GB:.3g}")
    if constraints.max_latency_ratio is not None:
        efficiency = row.trial.after.efficiency
        if efficiency is None or not efficiency.points:
            found.append("its latency was not measured")
        elif (worst := 1 / min(point.speed_up for point in efficiency.points)) > constraints.max_latency_ratio:
            limit = formats.times(constraints.max_latency_ratio)
            found.append(f"latency up to {formats.times(worst)} dense, more than {limit}")
    own = {score.unit: score for score in row.trial.after.tasks}
    for task, points in constraints.max_drop:
        measured = [dense for dense in experiment.dense_report.tasks if dense.task == task and dense.unit in own]
        drops = [_drop(dense, own[dense.unit]) for dense in measured]
        if not drops:
            found.append(f"{task} was not measured")
        elif not max(drops) <= points:
            found.append(f"{task} {max(drops):.1f} points below dense, more than {points:g}")
    return tuple(found)


def _drop(dense: TaskScore, score: TaskScore) -> float:
    """How much worse a score is, in points of 100; a metric that is better when lower rises."""
    return 100 * (dense.value - score.value) * (1 if dense.higher_is_better else -1)
