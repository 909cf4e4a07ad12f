"""The discrete search space: one trial per distinct (plan, chain of training runs)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shortened_llm.config import Control, RetrainingConfig
from shortened_llm.evaluation.units import Unit
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import ModelRef, PrunePlan, Recipe, TokenMixture, TrainingData, TrialSpec
from shortened_llm.retraining.job import RetrainingJob
from shortened_llm.retraining.recipe import Chain, chains


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What all trials of a search share."""

    dense: ModelRef
    data: TrainingData
    retraining: RetrainingConfig
    selection: tuple[Unit, ...]
    dtype: str
    export_dtype: str

    def trials(self, plans: Iterable[PrunePlan]) -> tuple[TrialSpec, ...]:
        """Every plan with every method, learning rate, seed and budget of its ratios."""
        return distinct(
            self._trial(plan, method, chain)
            for plan in plans
            for method in self.retraining.methods
            for chain in self._chains(plan, method)
        )

    def controls(self, control: Control, plans: Iterable[PrunePlan]) -> tuple[TrialSpec, ...]:
        """Each plan with continued pretraining alone."""
        return distinct(
            self._trial(plan, "cpt", chain, control) for plan in plans for chain in self._chains(plan, "cpt")
        )

    def scaled(self, spec: TrialSpec, factor: float) -> TrialSpec:
        """Make the training runs of a trial `factor` times as long, in whole steps, at least one."""
        recipes = []
        for recipe in spec.recipes:
            steps = max(1, round(recipe.num_steps * factor))
            warmup = min(round(recipe.warmup_steps * factor), steps - 1)
            decay = max(1, min(round(recipe.decay_steps * factor), steps - warmup))
            recipes.append(replace(recipe, num_steps=steps, warmup_steps=warmup, decay_steps=decay))
        return self._trial(spec.plan, spec.method, tuple(recipes), spec.control)

    def at_rung(self, spec: TrialSpec, share: float) -> TrialSpec:
        """Train a candidate on a share of its tokens, in whole steps. Its warm-up stays as it is, so that up to the
        decay the shorter run is the beginning of the longer one."""
        whole_steps = tuple(recipe.num_steps for recipe in spec.recipes)
        spec = replace(spec, rung=share, candidate=spec.fingerprint, whole_steps=whole_steps)
        if share == 1 or not spec.recipes:
            return spec
        recipes = []
        for recipe in spec.recipes:
            steps = max(1, round(recipe.num_steps * share))
            recipes.append(replace(recipe, num_steps=steps, decay_steps=max(1, round(recipe.decay_steps * share))))
        shorter = self._trial(spec.plan, spec.method, tuple(recipes), spec.control)
        return replace(spec, fingerprint=shorter.fingerprint, recipes=shorter.recipes)

    def jobs(self, spec: TrialSpec) -> tuple[RetrainingJob, ...]:
        """The training runs of a trial. Where each begins is known before the one ahead has run: by its identity."""
        model = self.dense.view(spec.plan.transforms)
        jobs: list[RetrainingJob] = []
        for recipe in spec.recipes:
            jobs.append(self._job(model, recipe, is_continued=spec.rung < 1))
            model = model.exported(url=model.url, fingerprint=jobs[-1].fingerprint, files=())
        return tuple(jobs)

    def trial_identity(self, spec: TrialSpec) -> dict[str, object]:
        """What determines a trial's result."""
        return {
            "model": self.dense.view(spec.plan.transforms).identity,
            "retraining": [job.identity for job in self.jobs(spec)],
            "selection": [unit.identity for unit in self.selection],
        }

    def _chains(self, plan: PrunePlan, method: str) -> Iterator[Chain]:
        num_pairs = self.data.instructions.num_sequences if self.data.instructions else 0
        ratios = {label.target.ratio for label in plan.labels if label.criterion != "dense"}
        budgets = {self.retraining.budget(ratio) for ratio in ratios} or set(self.retraining.budgets)
        for budget in sorted(budgets):
            yield from chains(self.retraining, method, budget, num_pairs)

    def _trial(self, plan: PrunePlan, method: str, chain: Chain, control: Control | None = None) -> TrialSpec:
        spec = TrialSpec(fingerprint="", plan=plan, method=method, recipes=chain, control=control)
        return replace(spec, fingerprint=fingerprint(self.trial_identity(spec)))

    def _job(self, model: ModelRef, recipe: Recipe, *, is_continued: bool) -> RetrainingJob:
        tokens = self.data.instructions if recipe.train_on == "instructions" else self.data.corpus
        return RetrainingJob(
            model=model,
            teacher=self.dense if recipe.distill else None,
            tokens=tokens or TokenMixture(parts=()),
            validation=self.data.validation,
            recipe=recipe,
            dtype=self.dtype,
            export_dtype=self.export_dtype,
            placement=self.retraining.model_copy(update={"keep_stable_checkpoint": True})
            if is_continued
            else self.retraining,
        )


def distinct(specs: Iterable[TrialSpec]) -> tuple[TrialSpec, ...]:
    """The first of each fingerprint; a control that equals a candidate stays beside it, as they share their result."""
    found: dict[tuple[str, str | None], TrialSpec] = {}
    for spec in specs:
        found.setdefault((spec.fingerprint, spec.control), spec)
    return tuple(found.values())
