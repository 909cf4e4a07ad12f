"""Retraining methods side by side: for each plan up to three tables, since three budgets make three questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from shortened_llm.records import Experiment, PrunePlan, TrialSpec
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.entrants import Entrant, entrants
from shortened_llm.reporting.rows import TrialRow

REFERENCE = "cpt"
Label = Literal["Equal tokens", "Equal seconds", "Own recipe"]
"""What was equal, if anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonTable:
    """Entrants that had the same budget, or each its own."""

    label: Label
    budget: int
    """Tokens of the corpus; 0 where nothing was trained on the corpus alone."""
    reference: Entrant
    entrants: tuple[Entrant, ...]
    """Methods first, then controls, then models that were not trained."""

    @property
    def pairs(self) -> tuple[tuple[Entrant, Entrant], ...]:
        """Every two methods; and the dense model as it is and trained like them, whose gain is no repair of the cut."""
        dense = [one for one in self.entrants if one.name == "dense" or one.is_dense_control]
        dense.sort(key=lambda one: one.is_dense_control)
        methods = combinations((one for one in self.entrants if one.kind == "method"), 2)
        return (*methods, *combinations(dense, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanComparison:
    """One plan with one budget on the corpus."""

    title: str
    tables: tuple[ComparisonTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodsSection:
    """The comparison of a whole experiment."""

    experiment: str
    """Its name; empty where a report has one alone."""
    columns: tuple[ScoreColumn, ...]
    plans: tuple[PlanComparison, ...]
    seeds: tuple[int, ...]


def methods_sections(
    experiment: Experiment, rows: Sequence[TrialRow], dense: Measurements, columns: Sequence[ScoreColumn]
) -> tuple[MethodsSection, ...]:
    """One for each experiment of a report that has two retrained models to compare: others may have other data.

    Args:
        columns: texts to compare on.
    """
    found = []
    for name in dict.fromkeys(name for row in rows for name in row.trial.experiments or ("",)):
        own = [row for row in rows if name in (row.trial.experiments or ("",))]
        measured = [column for column in columns if any(column in row.after for row in own)] if name else columns
        if plans := _plans(experiment, own, dense, measured):
            seeds = sorted(
                {seed for plan in plans for table in plan.tables for one in table.entrants for seed in one.seeds}
            )
            found.append(
                MethodsSection(experiment=name, columns=tuple(measured), plans=tuple(plans), seeds=tuple(seeds))
            )
    return tuple(found)


def _plans(
    experiment: Experiment, rows: Sequence[TrialRow], dense: Measurements, columns: Sequence[ScoreColumn]
) -> list[PlanComparison]:
    order = list(dict.fromkeys(row.method for row in sorted(rows, key=lambda row: row.number)))
    trained = sorted((row for row in rows if row.learning_rates), key=lambda row: order.index(row.method))
    at_once_last = sorted((row for row in rows if not row.is_control), key=lambda row: row.trial.spec.rounds is None)
    plans = {row.asked.transforms: row.asked for row in at_once_last}
    return [
        PlanComparison(title=_title(plan, experiment, budget), tables=tables)
        for plan in plans.values()
        for budget in _budgets(plan, trained)
        if columns and (tables := _tables(plan, budget, trained, _bases(plan, rows, dense)))
    ]


def corpus_budget(spec: TrialSpec) -> int:
    """Tokens of the corpus that a trial was to train on."""
    return sum(recipe.tokens for recipe in spec.recipes if recipe.train_on == "corpus")


def _has_equal_tokens(row: TrialRow) -> bool:
    return not row.trial.spec.equal_seconds and row.trial.spec.train_on == "corpus"


def _of_plan(plan: PrunePlan, trained: Sequence[TrialRow]) -> list[TrialRow]:
    return [row for row in trained if row.asked.transforms == plan.transforms and not row.is_control]


def _budgets(plan: PrunePlan, trained: Sequence[TrialRow]) -> list[int]:
    """Distinct budgets of a plan that several ratios led to; 0 where nothing was trained on the corpus alone."""
    rows = [row for row in _of_plan(plan, trained) if _has_equal_tokens(row)]
    return sorted({corpus_budget(row.trial.spec) for row in rows}) or [0]


def _title(plan: PrunePlan, experiment: Experiment, budget: int) -> str:
    removed = f"{plan.name}: {formats.removed_count(plan)} removed"
    return f"{removed}, {formats.compact(budget)} tokens" if budget else removed


def _bases(plan: PrunePlan, rows: Sequence[TrialRow], dense: Measurements) -> tuple[Entrant, ...]:
    """What was not trained: the plan and the dense model."""
    before: Measurements = {}
    for row in rows:
        if row.asked.transforms == plan.transforms:
            before = row.before | before
    return tuple(
        Entrant(name=name, kind="untrained", scores={None: found})
        for name, found in (("untrained", before), ("dense", dense))
        if found
    )


def _tables(
    plan: PrunePlan,
    budget: int,
    trials: Sequence[TrialRow],
    bases: tuple[Entrant, ...],
) -> tuple[ComparisonTable, ...]:
    own = _of_plan(plan, trials)
    methods = entrants([row for row in own if _has_equal_tokens(row) and corpus_budget(row.trial.spec) == budget])
    controls = entrants([row for row in trials if _controls(row, plan, budget)])
    timed = entrants([row for row in own if row.trial.spec.equal_seconds and _nearest_budget(row, own) == budget])
    recipes = entrants([row for row in own if _is_own_recipe(row, budget)])
    reference = next((method for method in methods if method.name == REFERENCE), methods[0] if methods else None)
    beside = (reference,) if reference else ()
    candidates: list[tuple[Label, tuple[Entrant, ...]]] = [
        ("Equal tokens", (*methods, *controls)),
        ("Equal seconds", (*beside, *timed) if beside and timed else ()),
        ("Own recipe", (*beside, *recipes) if recipes else ()),
    ]
    return tuple(
        ComparisonTable(label=label, budget=budget, reference=reference or trained[0], entrants=(*trained, *bases))
        for label, trained in candidates
        if _comparable(trained)
    )


def _is_own_recipe(row: TrialRow, budget: int) -> bool:
    """Trained on instructions at last; whatever came before was on the corpus with this budget, where there is one."""
    spec = row.trial.spec
    at_this_budget = not budget or corpus_budget(spec) in (0, budget)
    return spec.train_on == "instructions" and not spec.equal_seconds and at_this_budget


def _comparable(trained: Sequence[Entrant]) -> bool:
    return len(trained) > 1 and any(entrant.rows for entrant in trained)


def _controls(row: TrialRow, plan: PrunePlan, budget: int) -> bool:
    """Whether a control is one for this plan and budget: the dense model, or another one of the same target."""
    control = row.trial.spec.control
    same_size = control == "dense" or bool(set(row.plan.targets) & set(plan.targets))
    return control is not None and same_size and corpus_budget(row.trial.spec) == budget


def _nearest_budget(row: TrialRow, own: Sequence[TrialRow]) -> int:
    """The budget whose reference took the time nearest to this trial's: where a plan has one budget, that."""
    candidates = [other for other in own if _has_equal_tokens(other)]
    references = [other for other in candidates if other.method == REFERENCE] or candidates

    def distance(other: TrialRow) -> float:
        return abs((other.training_seconds or 0.0) - (row.training_seconds or 0.0))

    return corpus_budget(min(references, key=distance).trial.spec) if references else 0
