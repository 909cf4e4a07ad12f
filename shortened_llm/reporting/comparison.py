"""Retraining methods side by side: for each plan up to three tables, since three budgets make three questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from shortened_llm.records import Experiment, PrunePlan, TrialSpec
from shortened_llm.reporting import formats
from shortened_llm.reporting.certainty import listed
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.entrants import Entrant, entrants, untrained
from shortened_llm.reporting.paired import LEAST_STANDARD_ERRORS, Difference
from shortened_llm.reporting.rows import TrialRow, method_name

REFERENCE = "cpt"
FEW_DOCUMENTS = 20
"""Below this many clusters a standard error is itself uncertain, and rather too small."""
SAME_TIME = 0.1
"""Share by which training times may differ and still be called equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entrant on one text."""

    perplexity: float | None
    difference: Difference | None
    """To the reference; None for itself and where either was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entrant on all texts."""

    entrant: Entrant
    cells: tuple[Cell, ...]
    is_reference: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLine:
    """Two methods on all texts: the first less the second."""

    name: str
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonTable:
    """Entrants that had the same budget, or each its own."""

    label: str
    says: str
    """What was equal."""
    reference: str
    lines: tuple[Line, ...]
    """Methods first, then controls, then models that were not trained."""
    pairs: tuple[PairLine, ...]
    """Of methods alone."""
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanComparison:
    """One plan with one budget on the corpus."""

    title: str
    tables: tuple[ComparisonTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodsSection:
    """The comparison of a whole experiment."""

    columns: tuple[ScoreColumn, ...]
    plans: tuple[PlanComparison, ...]
    conditions: tuple[str, ...]
    """What was compared, in sentences."""


def methods_section(
    experiment: Experiment, rows: Sequence[TrialRow], dense: Measurements, columns: Sequence[ScoreColumn]
) -> MethodsSection | None:
    """None where no two retrained models can be compared.

    Args:
        columns: texts to compare on.
    """
    order = list(dict.fromkeys(method_name(trial.spec) for trial in experiment.trials))
    trained = sorted((row for row in rows if row.learning_rates), key=lambda row: order.index(row.method))
    plans = {row.plan.kept_blocks: row.plan for row in rows if not row.is_control}
    compared = [
        PlanComparison(title=_title(plan, experiment, budget), tables=tables)
        for plan in plans.values()
        for budget in _budgets(plan, trained)
        if (tables := _tables(plan, budget, trained, _bases(plan, rows, dense), columns))
    ]
    if not columns or not compared:
        return None
    return MethodsSection(
        columns=tuple(columns), plans=tuple(compared), conditions=_conditions(experiment, columns, compared)
    )


def corpus_budget(spec: TrialSpec) -> int:
    """Tokens of the corpus that a trial was to train on."""
    return sum(recipe.tokens for recipe in spec.recipes if recipe.train_on == "corpus")


def _has_equal_tokens(row: TrialRow) -> bool:
    return not row.trial.spec.equal_seconds and row.trial.spec.train_on == "corpus"


def _of_plan(plan: PrunePlan, trained: Sequence[TrialRow]) -> list[TrialRow]:
    return [row for row in trained if row.plan.kept_blocks == plan.kept_blocks and not row.is_control]


def _budgets(plan: PrunePlan, trained: Sequence[TrialRow]) -> list[int]:
    """Distinct budgets of a plan that several ratios led to; 0 where nothing was trained on the corpus alone."""
    rows = [row for row in _of_plan(plan, trained) if _has_equal_tokens(row)]
    return sorted({corpus_budget(row.trial.spec) for row in rows}) or [0]


def _title(plan: PrunePlan, experiment: Experiment, budget: int) -> str:
    removed = f"{plan.name}: {len(plan.removed_blocks)} of {experiment.num_blocks} blocks removed"
    return f"{removed}, {formats.compact(budget)} tokens" if budget else removed


def _bases(plan: PrunePlan, rows: Sequence[TrialRow], dense: Measurements) -> tuple[Entrant, ...]:
    """What was not trained: the plan and the dense model."""
    before: Measurements = {}
    for row in rows:
        if row.plan.kept_blocks == plan.kept_blocks:
            before = row.before | before
    return tuple(untrained(name, found) for name, found in (("untrained", before), ("dense", dense)) if found)


def _tables(
    plan: PrunePlan,
    budget: int,
    trained: Sequence[TrialRow],
    bases: tuple[Entrant, ...],
    columns: Sequence[ScoreColumn],
) -> tuple[ComparisonTable, ...]:
    own = _of_plan(plan, trained)
    methods = entrants([row for row in own if _has_equal_tokens(row) and corpus_budget(row.trial.spec) == budget])
    controls = entrants([row for row in trained if _controls(row, plan, budget)])
    timed = entrants([row for row in own if row.trial.spec.equal_seconds and _nearest_budget(row, own) == budget])
    recipes = entrants([row for row in own if _is_own_recipe(row, budget)])
    reference = next((method for method in methods if method.name == REFERENCE), methods[0] if methods else None)
    beside = (reference,) if reference else ()
    tables = []
    if _comparable((*methods, *controls)):
        says = f"Each was trained on {formats.compact(budget)} tokens of the same corpus."
        says += " Controls had the same training." if controls else ""
        tables.append(_table("Equal tokens", says, (*methods, *controls), reference, bases, columns))
    if timed and reference and _comparable((reference, *timed)):
        says = f"Each was trained for as long as {reference.name} took for its {formats.compact(budget)} tokens; the "
        says += "tokens differ. Such a comparison holds for this code on this hardware."
        tables.append(_table("Equal seconds", says, (reference, *timed), reference, bases, columns, same_time=True))
    if recipes and _comparable((*beside, *recipes)):
        says = "Recipes as they are used, each with data and a number of tokens of its own: a difference here is one "
        says += "between recipes, not between methods at the same cost."
        says += f" {reference.name}, trained on the corpus, stands beside them." if reference else ""
        tables.append(_table("Own recipe", says, (*beside, *recipes), reference, bases, columns))
    return tuple(tables)


def _is_own_recipe(row: TrialRow, budget: int) -> bool:
    """Trained on instructions at last; whatever came before was on the corpus with this budget, where there is one."""
    spec = row.trial.spec
    at_this_budget = not budget or corpus_budget(spec) in (0, budget)
    return spec.train_on == "instructions" and not spec.equal_seconds and at_this_budget


def _comparable(trained: Sequence[Entrant]) -> bool:
    return len(trained) > 1 and any(entrant.rows for entrant in trained)


def _controls(row: TrialRow, plan: PrunePlan, budget: int) -> bool:
    """Whether a control is one for this plan and budget: the dense model, or other blocks of the same number."""
    control = row.trial.spec.control
    same_size = control == "dense" or len(row.plan.kept_blocks) == len(plan.kept_blocks)
    return control is not None and same_size and corpus_budget(row.trial.spec) == budget


def _nearest_budget(row: TrialRow, own: Sequence[TrialRow]) -> int:
    """The budget whose reference took the time nearest to this trial's: where a plan has one budget, that."""
    candidates = [other for other in own if _has_equal_tokens(other)]
    references = [other for other in candidates if other.method == REFERENCE] or candidates

    def distance(other: TrialRow) -> float:
        return abs((other.training_seconds or 0.0) - (row.training_seconds or 0.0))

    return corpus_budget(min(references, key=distance).trial.spec) if references else 0


def _table(
    label: str,
    says: str,
    trained: tuple[Entrant, ...],
    reference: Entrant | None,
    bases: tuple[Entrant, ...],
    columns: Sequence[ScoreColumn],
    *,
    same_time: bool = False,
) -> ComparisonTable:
    methods = [entrant for entrant in trained if entrant.kind == "method"]
    reference = reference or trained[0]
    lines = tuple(
        Line(
            entrant=entrant,
            cells=tuple(
                Cell(
                    perplexity=entrant.perplexity(column),
                    difference=None if entrant is reference else entrant.difference(reference, column),
                )
                for column in columns
            ),
            is_reference=entrant is reference,
        )
        for entrant in (*trained, *bases)
    )
    pairs = tuple(
        PairLine(
            name=f"{second.name} − {first.name}",
            differences=tuple(second.difference(first, column) for column in columns),
        )
        for first, second in combinations(methods, 2)
    )
    remarks = [*_rates(methods), *_seeds(methods), *_unfinished(trained), *_few_documents(lines, columns)]
    remarks += _unequal_times(reference, methods) if same_time else []
    remarks += _adaptation((*trained, *bases), columns)
    return ComparisonTable(
        label=label, says=says, reference=reference.name, lines=lines, pairs=pairs, remarks=tuple(remarks)
    )


def _rates(methods: Sequence[Entrant]) -> list[str]:
    counts = {method.name: method.num_rates for method in methods}
    if len(set(counts.values())) == 1:
        number = next(iter(counts.values()))
        if number == 1:
            return ["Each method had one learning rate: another could change the order."]
        return [f"Each method had {number} learning rates; the best by selection scores, over all seeds, is shown."]
    given = listed([f"{name} {count}" for name, count in counts.items()])
    return [
        f"Unequal numbers of learning rates ({given}): the best of more is favoured. The best by selection scores, "
        "over all seeds, is shown."
    ]


def _seeds(methods: Sequence[Entrant]) -> list[str]:
    seeds = {method.seeds for method in methods if method.seeds}
    if len(seeds) > 1:
        return ["Methods have different seeds: a pair is compared on those that both have."]
    if seeds and len(next(iter(seeds))) == 1:
        return ["One seed each: nothing is separated by that."]
    return []


def _unfinished(trained: Sequence[Entrant]) -> list[str]:
    return [
        f"{one.name}: {one.num_unfinished} of {one.num_trials} trials did not finish."
        for one in trained if one.num_unfinished
    ]  # fmt: skip


def _few_documents(lines: Sequence[Line], columns: Sequence[ScoreColumn]) -> list[str]:
    few = []
    for index, column in enumerate(columns):
        differences = [line.cells[index].difference for line in lines]
        counts = [difference.num_clusters for difference in differences if difference]
        if counts and min(counts) < FEW_DOCUMENTS:
            few.append(f"{column.title} ({min(counts)})")
    if not few:
        return []
    return [f"Standard errors rest on few documents, or are missing without any: {listed(few)}."]


def _unequal_times(reference: Entrant, methods: Sequence[Entrant]) -> list[str]:
    """Time was to be equal; say where it was not."""
    sentences = []
    for method in methods:
        if method is not reference and method.training_seconds and reference.training_seconds:
            times = method.training_seconds / reference.training_seconds
            if abs(times - 1) > SAME_TIME:
                sentences.append(f"{method.name} took {times:.2f} times as long as {reference.name}.")
    return sentences


def _adaptation(everyone: Sequence[Entrant], columns: Sequence[ScoreColumn]) -> list[str]:
    """What the dense model gains by the same training is no repair of the cut."""
    dense = next((one for one in everyone if one.name == "dense"), None)
    control = next((one for one in everyone if one.kind == "control" and one.name.startswith("dense + ")), None)
    if dense is None or control is None:
        return []
    sentences = []
    for column in columns:
        gain = dense.difference(control, column)
        if gain is None:
            continue
        size = formats.difference(gain.mean, gain.standard_error)
        noise = LEAST_STANDARD_ERRORS * (gain.standard_error or 0.0)
        if gain.mean > noise:
            sentences.append(
                f"{column.title}: {control.name} gains {size} nats over the dense model, so {gain.mean:.3f} nats of "
                "every method's gain there are adaptation to the text, not repair of the cut."
            )
        else:
            sentences.append(
                f"{column.title}: {control.name} gains {size} nats over the dense model: no adaptation to the text "
                "that stands out of the noise."
            )
    return sentences


def _conditions(
    experiment: Experiment, columns: Sequence[ScoreColumn], plans: Sequence[PlanComparison]
) -> tuple[str, ...]:
    tables = [table for plan in plans for table in plan.tables]
    pairs = [pair for table in tables for pair in table.pairs]
    num_pairs = sum(difference is not None for pair in pairs for difference in pair.differences)
    seeds = sorted({seed for table in tables for line in table.lines for seed in line.entrant.seeds})
    documents = sorted(
        {
            cell.difference.num_clusters
            for table in tables for line in table.lines for cell in line.cells
            if cell.difference and cell.difference.num_clusters
        }
    )  # fmt: skip
    said = [f"Seeds: {', '.join(map(str, seeds)) or 'none finished'}. No order of the methods was expected."]
    if all(column.role == "selection" for column in columns):
        said.append("No report scores were measured: the texts below also chose the learning rates.")
    said += [f"{column.title}: {column.protocol}{_seen(experiment, column)}." for column in columns]
    if documents:
        few, many = documents[0], documents[-1]
        number = formats.count(few) + (f" to {formats.count(many)}" if many > few else "")
        said.append(f"Documents are the rows of a source; a text has {number} with predictions.")
    if num_pairs > 1:
        said.append(
            f"{num_pairs} differences between methods are judged one by one, without correction for their number."
        )
    return tuple(said)


def _seen(experiment: Experiment, column: ScoreColumn) -> str:
    if column.role != "report":
        return ""
    if column.unit in experiment.unseen_units:
        return "; never trained on"
    return "; other documents of this source were trained on"
