"""The search space: one trial per distinct (plan, chain of training runs)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shortened_llm.config import Control, RetrainingConfig
from shortened_llm.evaluation.units import Unit
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import (
    BY_PERPLEXITY,
    ModelRef,
    Objective,
    PrunePlan,
    Recipe,
    RetrainedModel,
    Rounds,
    Target,
    TokenMixture,
    TrainingData,
    TrialSpec,
)
from shortened_llm.retraining.job import RetrainingJob, Run
from shortened_llm.retraining.recipe import Chain, chain_at, chains, one_behind_another
from shortened_llm.scoring.job import ScoringJob
from shortened_llm.search.rounds import Rescoring, by_ranking, divided, rounds_to


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What all trials of a search share."""

    dense: ModelRef
    data: TrainingData
    retraining: RetrainingConfig
    selection: tuple[Unit, ...]
    """What is measured of every trial."""
    objective: Objective = BY_PERPLEXITY
    """By what trials are compared."""
    rounds: tuple[int, ...] = (1,)
    """Numbers of rounds in which a plan's size is reached: an axis."""
    rescoring: Rescoring | None = None
    """How the later rounds choose; None where all blocks go at once."""
    dtype: str
    export_dtype: str

    def trial(
        self, plan: PrunePlan, target: Target, ranking: str, rounds: int, method: str, point: Mapping[str, Any]
    ) -> TrialSpec:
        """A plan at one point of a method's axes, with the budget of one of its targets, in rounds by one of its
        rankings."""
        budget = self.retraining.budget(target.ratio)
        chain = chain_at(point, self.retraining, method, budget, self._num_pairs)
        by = {one.labels[0].ranking: one for one in by_ranking(plan)}
        return self._trial(plan, method, chain) if rounds == 1 else self._in_rounds(by[ranking], method, chain, rounds)

    def trials(self, plans: Iterable[PrunePlan]) -> tuple[TrialSpec, ...]:
        """Every plan with every method, at every value on its axes and with every budget of its ratios, at once and in
        rounds."""
        return distinct(
            spec
            for plan in plans
            for method in self.retraining.methods
            for chain in self._chains(plan, method)
            for rounds in self.retraining.rounds(method, self.rounds)
            for spec in self._with_rounds(plan, method, chain, rounds)
        )

    def controls(self, control: Control, plans: Iterable[PrunePlan]) -> tuple[TrialSpec, ...]:
        """Each plan with continued pretraining alone, of its weights or of random ones."""
        method = "scratch" if control == "scratch" else "cpt"
        return distinct(
            self._trial(plan, method, chain, control) for plan in plans for chain in self._chains(plan, method)
        )

    def scaled(self, spec: TrialSpec, factor: float) -> TrialSpec:
        """Make the training runs of a trial `factor` times as long, in whole steps, at least one."""
        recipes = []
        for recipe in spec.recipes:
            steps = max(1, round(recipe.num_steps * factor))
            warmup = min(round(recipe.warmup_steps * factor), steps - 1)
            decay = max(1, min(round(recipe.decay_steps * factor), steps - warmup))
            recipes.append(replace(recipe, num_steps=steps, warmup_steps=warmup, decay_steps=decay))
        return self._trial(spec.plan, spec.method, tuple(recipes), spec.control, spec.rounds)

    def at_rung(self, spec: TrialSpec, share: float) -> TrialSpec:
        """Train a candidate on a share of its tokens, in whole steps. Its warm-up stays as it is, so that up to the
        decay the shorter run is the beginning of the longer one."""
        whole_steps = tuple(recipe.num_steps for recipe in spec.recipes)
        spec = replace(spec, rung=share, candidate=spec.fingerprint, whole_steps=whole_steps)
        if share == 1 or not spec.recipes:
            return spec
        recipes = tuple(shortened(recipe, share) for recipe in spec.recipes)
        shorter = self._trial(spec.plan, spec.method, recipes, spec.control, spec.rounds)
        return replace(spec, fingerprint=shorter.fingerprint, recipes=shorter.recipes)

    def runs(self, spec: TrialSpec) -> tuple[Run, ...]:
        """The training runs of a trial, each from the model of the one before."""
        view, way = self.dense.view(spec.start), spec.rounds.way if spec.rounds else None
        runs: list[Run] = []
        for index, recipe in enumerate(spec.recipes):
            run = self._job(recipe, view).run
            runs.append(run.after(runs[-1], spec.removed_before(index), way) if runs else run)
        return tuple(runs)

    def job(self, run: Run, model: ModelRef, *, keeps_stable: bool = False) -> RetrainingJob:
        """A training run, from a model that is there.

        Args:
            keeps_stable: whether it keeps its state before the decay; see `num_kept`.
        """
        placement = self.retraining.model_copy(update={"keep_stable_checkpoint": keeps_stable})
        return replace(self._job(run.recipe, model), begins=run.begins, placement=placement)

    def _job(self, recipe: Recipe, model: ModelRef) -> RetrainingJob:
        tokens = self.data.instructions if recipe.train_on == "instructions" else self.data.corpus
        return RetrainingJob(
            model=model,
            teacher=self.dense if recipe.distill else None,
            tokens=tokens or TokenMixture(parts=()),
            validation=self.data.validation,
            recipe=recipe,
            dtype=self.dtype,
            export_dtype=self.export_dtype,
            placement=self.retraining,
        )

    def scoring(self, spec: TrialSpec, model: ModelRef, count: int) -> ScoringJob:
        """How a round chooses the `count` blocks that a model loses."""
        assert self.rescoring is not None, "of a search with rounds"
        return self.rescoring.again(spec.plan.labels[0].ranking, model, count)

    def made(self, spec: TrialSpec, runs: Sequence[RetrainedModel]) -> PrunePlan:
        """What the runs of a trial were made by: its plan, or what its rounds chose."""
        return self.rescoring.plan(spec.plan, runs[-1].model) if spec.rounds and self.rescoring else spec.plan

    def num_kept(self, spec: TrialSpec) -> int:
        """How many runs of a trial keep their state before the decay, from which a longer one goes on. Those behind the
        first begin with another model at each rung, so that nothing could go on from theirs."""
        if self.retraining.keep_stable_checkpoint:
            return len(spec.recipes)
        return 1 if spec.rung < 1 else 0

    def trial_identity(self, spec: TrialSpec) -> dict[str, object]:
        """What determines a trial's result."""
        return {
            "model": self.dense.view(spec.plan.transforms).identity,
            "retraining": [run.identity for run in self.runs(spec)],
            "selection": [unit.identity for unit in self.selection],
        }

    def _chains(self, plan: PrunePlan, method: str) -> Iterator[Chain]:
        ratios = {label.target.ratio for label in plan.labels if label.criterion != "dense"}
        budgets = {self.retraining.budget(ratio) for ratio in ratios} or set(self.retraining.budgets)
        for budget in sorted(budgets):
            yield from chains(self.retraining, method, budget, self._num_pairs)

    @property
    def _num_pairs(self) -> int:
        return self.data.instructions.num_sequences if self.data.instructions else 0

    def _with_rounds(self, plan: PrunePlan, method: str, chain: Chain, rounds: int) -> Iterator[TrialSpec]:
        if rounds == 1:
            yield self._trial(plan, method, chain)
        else:
            yield from (self._in_rounds(one, method, chain, rounds) for one in by_ranking(plan))

    def _in_rounds(self, plan: PrunePlan, method: str, chain: Chain, rounds: int) -> TrialSpec:
        assert self.rescoring is not None, "of a search with rounds"
        steps = rounds_to(plan, rounds, self.rescoring)
        return self._trial(plan, method, divided(chain, rounds), rounds=steps)

    def _trial(
        self,
        plan: PrunePlan,
        method: str,
        chain: Chain,
        control: Control | None = None,
        rounds: Rounds | None = None,
    ) -> TrialSpec:
        spec = TrialSpec(
            fingerprint="", plan=plan, method=method, recipes=one_behind_another(chain), rounds=rounds,
            control=control, objective=self.objective,
        )  # fmt: skip
        return replace(spec, fingerprint=fingerprint(self.trial_identity(spec)))


def shortened(recipe: Recipe, share: float) -> Recipe:
    """A recipe with a share of its steps, whose warm-up stays as it is."""
    steps, decay = max(1, round(recipe.num_steps * share)), max(1, round(recipe.decay_steps * share))
    return replace(recipe, num_steps=steps, decay_steps=decay)


def distinct(specs: Iterable[TrialSpec]) -> tuple[TrialSpec, ...]:
    """The first of each fingerprint; a control that equals a candidate stays beside it, as they share their result."""
    found: dict[tuple[str, str | None], TrialSpec] = {}
    for spec in specs:
        found.setdefault((spec.fingerprint, spec.control), spec)
    return tuple(found.values())
