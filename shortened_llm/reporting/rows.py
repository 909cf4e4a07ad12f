"""Trials as rows of a table: in order, numbered, the best of each size marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from shortened_llm.records import Bin, EvalScores, Experiment, PrunePlan, PruneUnit, ReportedTrial, RetrainedModel
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import Measurements, measurements

Status = Literal["done", "running", "stopped", "waiting", "left out", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
Texts = tuple[str, ...]
"""Units of the texts of a mean, in their order."""
Basis = tuple[str, ...]
"""What trials must share to be compared: the metric of the search, and the units of the scores that it is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """A trial as the report shows it. A property is None where the trial has no such number."""

    number: int
    """Names the trial in plots and table, from 1."""
    trial: ReportedTrial
    status: Status
    best_of: tuple[Bin, ...]
    """Targets that it is the best of, by its selection scores."""
    before: Measurements
    """The pruned model before retraining, selection and report."""
    after: Measurements
    """The retrained model, selection and report."""

    @property
    def cause(self) -> str | None:
        """Why it failed or was left out."""
        return {"failed": self.trial.failure, "left out": self.trial.left_out}.get(self.status)

    @property
    def is_best(self) -> bool:
        """Whether it is the best of a target."""
        return bool(self.best_of)

    @property
    def plan(self) -> PrunePlan:
        return self.trial.plan

    @property
    def asked(self) -> PrunePlan:
        """What the scores of the dense model choose at once: the plan, but for a trial in rounds."""
        return self.trial.spec.plan

    @property
    def gone(self) -> tuple[str, ...]:
        """What of the dense model is gone after each run of a trial in rounds, in words."""
        if not self.trial.spec.rounds:
            return ()
        return tuple(formats.removed_by(run.model.origin or (), self.plan.dense.blocks) for run in self.runs)

    @property
    def criteria(self) -> tuple[str, ...]:
        return plan_criteria(self.plan)

    @property
    def labels(self) -> str:
        """Every point of the search space that led to the plan: `ppl 20 %, taylor 20 %`."""
        return ", ".join(
            f"{label.ranking}\N{NO-BREAK SPACE}{formats.target(label.target)}" for label in self.plan.labels
        )

    @property
    def is_control(self) -> bool:
        return self.trial.spec.control is not None

    @property
    def control_name(self) -> str | None:
        """What was trained for comparison; None for a candidate."""
        names = {"dense": "unpruned", "random": "random blocks", "scratch": "random weights"}
        return names[self.trial.spec.control] if self.trial.spec.control else None

    @property
    def method(self) -> str:
        """`lora`, or `lora on instructions in 3 rounds`."""
        spec = self.trial.spec
        on = " on instructions" if spec.train_on == "instructions" else ""
        return f"{spec.method}{on}" + (f" in {len(spec.rounds.gone)} rounds" if spec.rounds else "")

    @property
    def rung(self) -> float:
        return self.trial.spec.rung

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """At the peak of each run that trains, of one round."""
        return tuple(recipe.learning_rate for recipe in self.trial.spec.chain)

    @property
    def seed(self) -> int | None:
        return self.trial.spec.seed if self.learning_rates else None

    @property
    def runs(self) -> tuple[RetrainedModel, ...]:
        """Training runs, in order."""
        return self.trial.result.runs if self.trial.result else ()

    @property
    def tokens(self) -> int | None:
        return self.trial.result.tokens if self.trial.result else None

    @property
    def training_seconds(self) -> float | None:
        return self.trial.result.training_seconds if self.trial.result else None

    @property
    def accelerator_seconds(self) -> float | None:
        return self.trial.result.accelerator_seconds if self.trial.result else None

    @property
    def skipped_steps(self) -> tuple[int, ...]:
        """Over all runs, each counting its own steps."""
        return tuple(step for run in self.runs for step in run.skipped_steps)

    @property
    def loss_spikes(self) -> tuple[int, ...]:
        """Over all runs, each counting its own steps."""
        return tuple(step for run in self.runs for step in run.loss_spikes)

    @property
    def incidents(self) -> tuple[str, ...]:
        """What went wrong in training without ending it: `2 steps skipped (7, 8)`."""
        return (
            *(_steps(self.skipped_steps, "step skipped", "steps skipped")),
            *(_steps(self.loss_spikes, "loss spike", "loss spikes")),
        )

    @property
    def trial_seconds(self) -> float | None:
        return self.trial.result.seconds if self.trial.result else None

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens / training seconds; checkpoints count as training time."""
        return self.tokens / self.training_seconds if self.tokens and self.training_seconds else None

    @property
    def selection_nll(self) -> float | None:
        """Mean NLL after retraining on the selection texts, in nats per token."""
        value = self.trial.result.after.mean_nll if self.trial.result else math.nan
        return value if math.isfinite(value) else None

    @property
    def loss(self) -> float | None:
        return search_loss(self.trial)

    @property
    def basis(self) -> Basis:
        return basis(self.trial)

    @property
    def selection_texts(self) -> Texts:
        """What the selection NLL is a mean over: two means of other texts cannot be compared."""
        return tuple(text.unit for text in self.trial.result.after.perplexity) if self.trial.result else ()

    @property
    def size_name(self) -> str:
        """`24 blocks`, for tables that name models by size."""
        return formats.size_name(self.plan)

    @property
    def checkpoint_url(self) -> str | None:
        """Directory that `from_pretrained` loads; None where nothing was trained: the model is a view of the dense
        files."""
        return self.runs[-1].model.url if self.runs else None

    @property
    def adapter_url(self) -> str | None:
        """Directory of the last run's adapters, which are merged in the checkpoint too."""
        adapter = self.runs[-1].adapter if self.runs else None
        return adapter.url if adapter else None


def _steps(steps: Sequence[int], one: str, many: str, limit: int = 5) -> tuple[str, ...]:
    if not steps:
        return ()
    named = ", ".join(map(str, steps[:limit])) + (", …" if len(steps) > limit else "")
    return (f"{len(steps)} {one if len(steps) == 1 else many} ({named})",)


def plan_criteria(plan: PrunePlan) -> tuple[str, ...]:
    """The set of criteria that led to a plan, sorted by name."""
    return tuple(sorted({label.ranking for label in plan.labels}))


def search_loss(trial: ReportedTrial) -> float | None:
    """What the search minimises, after retraining."""
    value = trial.spec.objective.loss(trial.result.after) if trial.result else math.nan
    return value if math.isfinite(value) else None


def basis(trial: ReportedTrial) -> Basis:
    """See `Basis`; empty where the trial has no result."""
    objective = trial.spec.objective
    return (objective.metric, *objective.units(trial.result.after)) if trial.result else ()


def trial_status(trial: ReportedTrial) -> Status:
    """A trial with a result is done, whatever failed before it."""
    if trial.result is not None:
        return "done"
    if trial.failure is not None:
        return "failed"
    if trial.running:
        return "running"
    if trial.left_out is not None:
        return "left out"
    return "stopped" if trial.stopped else "waiting"


def _rank(trial: ReportedTrial) -> tuple[float, str, str]:
    """Lowest loss first, a tie by fingerprint; trials without one by name: an order that no run can change."""
    value = search_loss(trial)
    return (math.inf, trial.spec.name, trial.spec.fingerprint) if value is None else (value, "", trial.spec.fingerprint)


def contenders(trials: Sequence[ReportedTrial]) -> dict[tuple[Bin, Basis], list[ReportedTrial]]:
    """Target and basis -> the trials that may be the best of it, the lowest loss first.

    An experiment has one metric and one choice of texts; several may have others, each with a best of its own. Targets
    without a result are left out. Controls are no candidates. Budgets must be equal, or luck at a low rung could beat
    training: of a search with rungs, only trials of the highest rung that has a result contend, and what trains
    nothing, which is the same at every rung.
    """
    found: dict[tuple[Bin, Basis], list[ReportedTrial]] = {}
    for trial in sorted(trials, key=_rank):
        if trial.spec.control is None and search_loss(trial) is not None:
            for target in trial.spec.plan.targets:
                found.setdefault((target, basis(trial)), []).append(trial)
    for key, ranked in found.items():
        highest = max((trial.spec.rung for trial in ranked if trial.spec.recipes), default=1.0)
        found[key] = [trial for trial in ranked if trial.spec.rung == highest or not trial.spec.recipes]
    return found


def best_of_each_target(trials: Sequence[ReportedTrial]) -> dict[tuple[Bin, Basis], ReportedTrial]:
    """Target and basis -> the first of its contenders."""
    return {key: ranked[0] for key, ranked in contenders(trials).items()}


def quoted(trials: Sequence[ReportedTrial]) -> frozenset[str]:
    """Fingerprints of the trials that a report quotes: contenders and controls. What was stopped at a rung keeps its
    selection scores; nobody will quote it."""
    controls = {trial.spec.fingerprint for trial in trials if trial.spec.control}
    return frozenset(controls | {trial.spec.fingerprint for ranked in contenders(trials).values() for trial in ranked})


def way_of(trial: ReportedTrial) -> tuple[PruneUnit, ...]:
    """What its rankings remove: blocks, sub-layers, heads and channels, or several, where they lead to one plan."""
    return tuple(sorted({label.unit for label in trial.spec.plan.labels}))


def best_of_each_way(trials: Sequence[ReportedTrial]) -> list[ReportedTrial]:
    """The best of each target, and where several ways lead to it, of each way."""
    found: dict[object, ReportedTrial] = {}
    for key, ranked in contenders(trials).items():
        for trial in ranked:
            found.setdefault((key, way_of(trial)), trial)
    return list(found.values())


def trial_rows(experiment: Experiment) -> tuple[TrialRow, ...]:
    """All trials: largest model first; within a size the best of the highest rung first, then unfinished and failed
    ones, then controls.

    Each has the number that it has in the log: its place in the experiment.
    """
    best = best_of_each_target(experiment.trials)
    trials = sorted(
        enumerate(experiment.trials, start=1),
        key=lambda numbered: (
            -numbered[1].plan.size.parameters,
            numbered[1].spec.control is not None,
            STATUSES.index(trial_status(numbered[1])),
            -numbered[1].spec.rung,
            _rank(numbered[1]),
        ),
    )
    return tuple(
        TrialRow(
            number=number,
            trial=trial,
            status=trial_status(trial),
            best_of=tuple(target for (target, _), one in best.items() if one is trial),
            before=measurements(trial.result.before if trial.result else EvalScores(), trial.before),
            after=measurements(trial.result.after if trial.result else EvalScores(), trial.after),
        )
        for number, trial in trials
    )


def criteria_sets(experiment: Experiment) -> tuple[tuple[str, ...], ...]:
    """Every set of criteria that led to a plan: single ones in the order they were scored, then the others, sorted.

    Those of controls, which are drawn in a style of their own, are left out.
    """
    scored = tuple((scores.ranking,) for scores in experiment.unit_scores)
    found = sorted(
        {plan_criteria(trial.spec.plan) for trial in experiment.trials if trial.spec.control is None},
        key=lambda names: (len(names), names),
    )
    return tuple(dict.fromkeys([*scored, *found]))


def plans_of_criterion(rows: Sequence[TrialRow], criterion: str) -> list[PrunePlan]:
    """Each distinct plan that a criterion led to, the largest model first."""
    plans = {row.asked.transforms: row.asked for row in rows if criterion in row.criteria and not row.is_control}
    return sorted(plans.values(), key=lambda plan: (-plan.size.parameters, str(plan.transforms)))


def asked_ratios(plan: PrunePlan, criterion: str) -> str:
    """The ratios by which a criterion was asked for a plan: `20 %`."""
    asked = dict.fromkeys(formats.target(label.target) for label in plan.labels if label.ranking == criterion)
    return "/".join(asked)
