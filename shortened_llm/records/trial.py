"""Trials, and the experiment that they belong to."""

from dataclasses import dataclass, replace
from typing import Literal

from shortened_llm.records.evaluation import EvalScores, ServingScore
from shortened_llm.records.model import ModelRef, Size
from shortened_llm.records.objective import BY_PERPLEXITY, Objective
from shortened_llm.records.plan import PrunePlan
from shortened_llm.records.scores import UnitScores
from shortened_llm.records.training import Recipe, RetrainedModel
from shortened_llm.records.transform import Transform
from shortened_llm.records.units import PruneUnit, num_units, removal
from shortened_llm.records.widths import WidthScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How a plan's size is reached step by step, each step but the first by the scores of the retrained model."""

    gone: tuple[int, ...]
    """Units (count) that are gone after each round, ascending."""
    unit: PruneUnit = "block"
    first: tuple[Transform, ...]
    """What the first round does, by the scores of the dense model."""
    way: str
    """Fingerprint of how units are scored: criterion, settings and text, the same in each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One trial: a plan and the way to retrain it."""

    fingerprint: str
    plan: PrunePlan
    """What the scores of the dense model choose; with rounds, what they would choose at once."""
    method: str
    """A row of `methods.METHODS`."""
    recipes: tuple[Recipe, ...]
    """Training runs, each from the model of the one before; there is none where nothing is trained."""
    rounds: Rounds | None = None
    """None: all blocks go at once, before the first run."""
    control: Literal["dense", "random", "scratch"] | None = None
    """A comparison instead of a candidate: the unpruned model, blocks drawn at random, or random weights."""
    equal_seconds: bool = False
    """Its budget is the time that the reference method took, instead of its tokens."""
    rung: float = 1.0
    """Share of the token budget."""
    candidate: str = ""
    """Fingerprint of the same trial with the whole budget: trials that share it are the rungs of one candidate. Empty
    without rungs."""
    whole_steps: tuple[int, ...] = ()
    """Optimiser steps that each run has with the whole budget; empty without rungs."""
    objective: Objective = BY_PERPLEXITY
    """By what it is compared with others."""

    @property
    def name(self) -> str:
        if not self.recipes:
            return f"{self.plan.name} untrained"
        last = self.chain[-1]
        rates = "+".join(f"{recipe.learning_rate:g}" for recipe in self.chain)
        on = " on instructions" if last.train_on == "instructions" else ""
        at = f" in {len(self.rounds.gone)} rounds" if self.rounds else ""
        at += " at equal seconds" if self.equal_seconds else ""
        at += "" if self.rung == 1 else f" at {100 * self.rung:g} % of the tokens"
        settings = f" {self.settings}" if self.settings else ""
        return f"{self.plan.name} {self.method}{on}{settings} lr {rates} seed {last.seed}{at}"

    @property
    def chain(self) -> tuple[Recipe, ...]:
        """The runs of one round: they are alike in all rounds, but for their steps."""
        return self.recipes[: len(self.recipes) // (len(self.rounds.gone) if self.rounds else 1)]

    @property
    def start(self) -> tuple[Transform, ...]:
        """The transforms of the dense model that the first run begins with."""
        return self.rounds.first if self.rounds else self.plan.transforms

    def removed_before(self, run: int) -> int:
        """Units (count) that a round takes from the model of the run before, by the index of a run; 0 for the first,
        and within a round."""
        if self.rounds is None:
            return 0
        number, place = divmod(run, len(self.chain))
        return self.rounds.gone[number] - self.rounds.gone[number - 1] if number and not place else 0

    @property
    def shapes(self) -> tuple[tuple[Transform, ...], ...]:
        """For each run, transforms of the dense model to the shape that it trains; with rounds it is not known before
        which units that shape has."""
        if self.rounds is None:
            return (self.plan.transforms,) * len(self.recipes)
        unit, num_blocks = self.rounds.unit, self.plan.dense.blocks
        units = num_units(unit, num_blocks)
        shapes = [removal(unit, range(units - gone, units), num_blocks) for gone in self.rounds.gone]
        return tuple(shape for shape in shapes for _ in self.chain)

    @property
    def settings(self) -> str:
        """What a search may vary of the last run, beside the learning rate and the seed; empty where nothing is."""
        return self.chain[-1].settings if self.recipes else ""

    @property
    def row(self) -> tuple[str, str | None, bool]:
        """What sets it apart among the trials of an experiment: a control or a trial of equal seconds may share its
        result with a candidate."""
        return self.fingerprint, self.control, self.equal_seconds

    @property
    def learning_rate(self) -> float | None:
        """At the peak of the last run; None where nothing is trained."""
        return self.chain[-1].learning_rate if self.recipes else None

    @property
    def seed(self) -> int | None:
        """Seed of the last run, in rounds that of the first round; None where nothing is trained."""
        return self.chain[-1].seed if self.recipes else None

    @property
    def train_on(self) -> str | None:
        """Data of the last run, corpus or instructions; None where nothing is trained."""
        return self.chain[-1].train_on if self.recipes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A finished trial, measured with the selection texts."""

    fingerprint: str
    model: ModelRef
    """That of the last run; the plan's view where nothing was trained."""
    runs: tuple[RetrainedModel, ...]
    """What each training run handed on, in order."""
    before: EvalScores
    """The plan before retraining."""
    after: EvalScores
    seconds: float
    """Wall time of the trial's last attempt: scoring, start-up, training, export."""
    plan: PrunePlan | None = None
    """What was done to the dense model in the end, where rounds chose it."""

    @property
    def is_whole(self) -> bool:
        """Whether it has every score: what is missing is tried again when the search is."""
        return not (self.before.missing or self.after.missing)

    @property
    def tokens(self) -> int:
        """Trained on, over all runs."""
        return sum(run.tokens for run in self.runs)

    @property
    def training_seconds(self) -> float:
        """Over all runs, whoever made them."""
        return sum(run.seconds for run in self.runs)

    @property
    def accelerator_seconds(self) -> float:
        """Over all runs, whoever made them."""
        return sum(run.accelerator_seconds for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFailure:
    """Why a trial has no result. It does not count as done: the next run tries again."""

    fingerprint: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """One model with its scores, apart from any search."""

    model: str
    """The name that the user gave it."""
    name: str | None = None
    """The name that its card gives it; None where it has none."""
    ref: ModelRef
    selection: EvalScores
    report: EvalScores
    serving: ServingScore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Data that models were made from."""

    name: str
    path: str
    """The name that the user gave it."""
    role: Literal["calibration", "training", "instructions"]
    license: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where models come from, for those who get them."""

    base_model: str
    """The name that the user gave it."""
    on_hub: bool
    """Whether that name is an id of the Hugging Face hub."""
    base_license: str | None
    """None where it is not known."""
    sources: tuple[SourceFacts, ...]
    dtype: str
    """Type of the exported weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedTrial:
    """One row of the report: a trial with every score that was measured for it."""

    spec: TrialSpec
    result: TrialResult | None
    """None where the trial has not finished."""
    failure: str | None
    """The cause, where it failed."""
    before: EvalScores
    """Report scores of the plan before retraining; empty where not measured."""
    after: EvalScores
    """Report scores of the retrained model; empty where not measured."""
    running: bool = False
    """Begun and not ended, when the record was written."""
    left_out: str | None = None
    """Why the search ended without it, where its budget said so."""
    stopped: bool = False
    """Begun by a driver that was stopped before the trial ended; the next one goes on with it."""
    experiments: tuple[str, ...] = ()
    """Experiments that have this trial, where a report shows several; empty: the one of the record."""

    @property
    def plan(self) -> PrunePlan:
        """What was done to the dense model; until rounds have ended, what would be done at once."""
        made = self.result.plan if self.result else None
        return replace(made, labels=self.spec.plan.labels) if made else self.spec.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the recommended model must meet; see `config.constraints.ConstraintsConfig`."""

    max_bytes: int | None
    max_latency_ratio: float | None
    max_drop: tuple[tuple[str, float], ...]
    """(task, points of 100)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Everything a report needs. Selection scores chose; report scores are what to quote."""

    name: str
    model: str
    """The dense model as the user named it."""
    dense_size: Size
    dense_url: str
    dense_selection: EvalScores
    dense_report: EvalScores
    unit_scores: tuple[UnitScores, ...]
    trials: tuple[ReportedTrial, ...]
    notes: tuple[str, ...]
    """Facts about the protocol that a reader must know, such as a text used for both selection and report."""
    unseen_units: tuple[str, ...]
    """Units of the report texts whose source was never trained on."""
    dense_fingerprint: str
    """Identity of the dense model's files."""
    versions: dict[str, str]
    """Versions of the libraries that set numbers."""
    provenance: Provenance
    constraints: Constraints | None = None
    """None where the user set none."""
    width_scores: tuple[WidthScores, ...] = ()
    """What heads and channels were scored by, without the scores, of which there are too many to look at."""
