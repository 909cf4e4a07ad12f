"""The hard budget of a search: whether one more trial fits, by what finished trials cost and the next are estimated to.

Costs are re-estimated whenever a trial ends, from the speed of every run that has ended. Where nothing is known of the
speed, the first trial runs alone, so that it tells.
"""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from shortened_llm.config import BudgetConfig
from shortened_llm.records import TrialResult, TrialSpec, accelerator_seconds
from shortened_llm.retraining.job import Run
from shortened_llm.retraining.schedule import stable_end
from shortened_llm.search.estimate import Estimate, Shapes, estimate, measured_speeds, trial_work
from shortened_llm.search.space import SearchSpace
from shortened_llm.search.status import ReportedHours, continuing, reported_hours
from shortened_llm.search.stored.experiment import Begun
from shortened_llm.search.strategies.strategy import Outcomes
from shortened_llm.storage.layout import BEGUN
from shortened_llm.storage.store import Store

STORED_SECONDS = 60.0
"""How far Tune's log of a trial in the storage may lie behind."""


def over_budget(
    budget: BudgetConfig,
    trial: Estimate,
    running: Sequence[Estimate],
    *,
    spent: float,
    elapsed: float,
    beside: float,
) -> str | None:
    """Which cap a trial would pass, in words; None where it fits.

    Args:
        spent: accelerator-hours of trials that have ended.
        elapsed: hours since this run of the search began.
        beside: hours of a trial that are no training: start-up, scoring.
    """
    if trial.seconds is None and running:
        return "its cost is not known before a trial has ended"
    most, begun = budget.most_accelerator_hours, spent + sum(one.accelerator_hours or 0.0 for one in running)
    own = trial.accelerator_hours or 0.0
    if most is not None and trial.accelerator_hours != 0 and (begun >= most or begun + own > most):
        needed = f"about {own:.3g}" if own else "more"
        return f"it needs {needed} accelerator-hours, with {begun:.3g} of {most:.3g} spent or begun"
    ends = elapsed + beside + (trial.seconds or 0.0) / 3600
    if budget.hours is not None and ends > budget.hours:
        return f"it would end after {ends:.3g} hours; the search may take {budget.hours:.3g}"
    return None


def _caps(budget: BudgetConfig) -> str:
    given = {"accelerator_hours": budget.accelerator_hours, "cost": budget.cost, "hours": budget.hours}
    price = "" if budget.cost is None else f" at {budget.hourly_price:g} an hour"
    listed = ", ".join(f"{name} {value:g}{price * (name == 'cost')}" for name, value in given.items() if value)
    return f"search.budget has {listed or 'no limit'}"


@dataclass(slots=True, kw_only=True)
class Allowance:
    """What is left of the budget of one experiment; `proposals.Proposals` asks it before each trial."""

    budget: BudgetConfig
    space: SearchSpace
    shapes: Shapes
    accelerators: float
    """GPUs of a trial, or workers on CPU."""
    speeds: Mapping[str, float]
    """FLOP/s of an accelerator before anything is measured; may be empty."""
    experiment: Store
    """What belongs to the experiment alone: which trials it began."""
    started: float
    """When this run of the search began, by `time.monotonic`."""
    _runs: dict[str, tuple[Run, ...]] = field(default_factory=dict, init=False)
    _own: dict[str, bool] = field(default_factory=dict, init=False)
    _reported: dict[str, ReportedHours] = field(default_factory=dict, init=False)
    _read: dict[str, float] = field(default_factory=dict, init=False)
    """When the reports of a trial were read last, by `time.monotonic`."""
    _ended: dict[str, float] = field(default_factory=dict, init=False)
    """When a trial was first known to have ended."""

    def refuses(self, spec: TrialSpec, running: Sequence[TrialSpec], outcomes: Outcomes) -> str | None:
        """Why a trial may not begin; see `proposals.Refuses`."""
        found = {one.fingerprint: one for one in outcomes.specs}
        finished = [(found[key], result) for key, result in outcomes.results.items()]
        speeds = {**self.speeds, **measured_speeds(finished, self.shapes)}
        own, *begun = (self._estimate(one, finished, speeds) for one in (spec, *running))
        return over_budget(
            self.budget,
            own,
            self._at_least_reported(begun, running),
            spent=self.spent(outcomes),
            elapsed=(time.monotonic() - self.started) / 3600,
            beside=_beside(result for _, result in finished if self._is_own(result.fingerprint)),
        )

    def spent(self, outcomes: Outcomes) -> float:
        """Accelerator-hours of the trials that this experiment began and that have ended; of failed ones, and of work
        that was lost with its workers, as far as training reported them."""
        own = {key: result for key, result in outcomes.results.items() if self._is_own(key)}
        lost = [hours.lost for hours in self._hours_of(own, ended=True).values()]
        went_on = continuing(outcomes.specs, outcomes.results)
        failed = self._hours_of(outcomes.failed, ended=True)
        lost += [hours.since_first if key in went_on else hours.all for key, hours in failed.items()]
        return accelerator_seconds(run for result in own.values() for run in result.runs) / 3600 + sum(lost)

    def note(self, outcomes: Outcomes, num_left_out: int) -> str:
        """What the report says of the budget."""
        found = f"{_caps(self.budget)}; {self.spent(outcomes):.3g} accelerator-hours of training were spent"
        if not num_left_out:
            return f"{found}."
        trials = "1 trial was" if num_left_out == 1 else f"{num_left_out} trials were"
        return f"{found}, and {trials} left out: with a larger budget the same command goes on with them."

    def _estimate(
        self, spec: TrialSpec, finished: Sequence[tuple[TrialSpec, TrialResult]], speeds: Mapping[str, float]
    ) -> Estimate:
        made = {run.model.fingerprint for _, result in finished for run in result.runs}
        kept: dict[str, set[int]] = {}
        for other, _ in finished:
            for run in self._runs_of(other)[: self.space.num_kept(other)]:
                kept.setdefault(run.stable_fingerprint, set()).add(stable_end(run.recipe))
        work = trial_work(spec, self._runs_of(spec), self.shapes, made=made, begun=kept)
        return estimate(work, speeds, self.accelerators)

    def _runs_of(self, spec: TrialSpec) -> tuple[Run, ...]:
        if spec.fingerprint not in self._runs:
            self._runs[spec.fingerprint] = self.space.runs(spec)
        return self._runs[spec.fingerprint]

    def _is_own(self, fingerprint: str) -> bool:
        """Whether a trial that has ended was begun by this experiment, and not found in the storage."""
        if fingerprint not in self._own:
            self._own[fingerprint] = self.experiment.read(BEGUN, fingerprint, Begun) is not None
        return self._own[fingerprint]

    def _hours_of(self, trials: Collection[str], *, ended: bool) -> dict[str, ReportedHours]:
        """What trials reported; those that reported nothing are left out. Read again while Tune may yet store more."""
        now = time.monotonic()
        for trial in trials if ended else ():
            self._ended.setdefault(trial, now)
        stale = [trial for trial in trials if self._is_stale(trial, now)]
        if stale:
            self._read |= dict.fromkeys(stale, now)
            self._reported |= reported_hours(self.experiment.url, stale)
        return {trial: self._reported[trial] for trial in trials if trial in self._reported}

    def _is_stale(self, trial: str, now: float) -> bool:
        read = self._read.get(trial)
        return read is None or (
            now - read > STORED_SECONDS and read - self._ended.get(trial, math.inf) < STORED_SECONDS
        )

    def _at_least_reported(self, estimates: Sequence[Estimate], running: Sequence[TrialSpec]) -> list[Estimate]:
        """Estimates of trials that run, where these have not cost more by now."""
        if not self.budget.most_accelerator_hours:
            return list(estimates)
        spent = self._hours_of([spec.fingerprint for spec in running], ended=False)
        return [
            replace(one, accelerator_hours=max(one.accelerator_hours or 0.0, spent[spec.fingerprint].since_first))
            if spec.fingerprint in spent
            else one
            for one, spec in zip(estimates, running, strict=True)
        ]


def _beside(results: Iterable[TrialResult]) -> float:
    """Hours of a finished trial that were no training, on average; a trial that went on with another's training took
    less time than its runs."""
    return fmean([max(0.0, one.seconds - one.training_seconds) for one in results] or [0.0]) / 3600
