"""Which scores an experiment has: one column per unit and metric, selection apart from report."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from shortened_llm.records import EvalScores, Experiment, PerplexityScore, TaskScore

Role = Literal["selection", "report"]
Stage = Literal["before", "after"]
Kind = Literal["text", "task", "bits_per_byte", "agreement", "metric"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumn:
    """What a number must share with another to be compared with it: role, unit, kind and metric. All else is only the
    heading."""

    role: Role
    unit: str
    kind: Kind
    metric: str
    """`perplexity`, the metric of a task, `bits_per_byte`, `kl`, `top1`, or `value` of a user's own measure."""
    source: str = field(compare=False)
    """The text, the task, or the name of the user's own measure."""
    protocol: str = field(compare=False)
    higher_is_better: bool = field(default=False, compare=False)
    occurrence: int = field(default=1, compare=False)
    """Counts columns that have the same name and protocol."""
    note: str = field(default="", compare=False)
    """What tells it from the other columns of its name: `, 5 shots`, or ` (2)` for a second text; else empty."""

    @property
    def name(self) -> str:
        """`wiki`, or `piqa acc`; other columns may have it too."""
        return self.source if self.kind in ("text", "metric") else f"{self.source} {self.metric}"

    @property
    def title(self) -> str:
        """No other column of its role and kind has it."""
        return self.name + self.note


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One number of a column."""

    value: float
    standard_error: float | None = None
    num_items: int | None = None
    """Predictions, or task items; None where the measure does not say."""
    text: PerplexityScore | None = None
    """The whole score, where it is a perplexity."""
    task: TaskScore | None = None
    """The whole score, where it is of a task."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the measurement."""


Measurements = dict[ScoreColumn, Measured]


def measurements(selection: EvalScores, report: EvalScores) -> Measurements:
    """The scores of one model, by column; speed and memory are in `efficiency.py`."""
    return dict((*_scores("selection", selection), *_scores("report", report)))


def _scores(role: Role, scores: EvalScores) -> Iterator[tuple[ScoreColumn, Measured]]:
    for text in scores.perplexity:
        yield (
            ScoreColumn(
                role=role, unit=text.unit, kind="text", metric="perplexity", source=text.source, protocol=text.protocol
            ),
            Measured(value=text.perplexity, num_items=text.num_predictions, text=text, notes=text.notes),
        )
    for task in scores.tasks:
        column = ScoreColumn(
            role=role, unit=task.unit, kind="task", metric=task.metric, source=task.task, protocol=task.protocol,
            higher_is_better=task.higher_is_better,
        )  # fmt: skip
        yield (
            column,
            Measured(
                value=task.value,
                standard_error=task.standard_error,
                num_items=task.num_items,
                task=task,
                notes=task.notes,
            ),
        )
        if task.bits_per_byte is not None:
            bits = replace(column, kind="bits_per_byte", metric="bits_per_byte", higher_is_better=False)
            yield bits, Measured(value=task.bits_per_byte, num_items=len(task.item_bits_per_byte), task=task)
    for agreement in scores.agreement:
        for metric, value in (("kl", agreement.kl), ("top1", agreement.top1)):
            column = ScoreColumn(
                role=role, unit=agreement.unit, kind="agreement", metric=metric, source=agreement.source,
                protocol=agreement.protocol, higher_is_better=metric == "top1",
            )  # fmt: skip
            yield column, Measured(value=value, num_items=agreement.num_predictions, notes=agreement.notes)
    for own in scores.metrics:
        column = ScoreColumn(
            role=role, unit=own.unit, kind="metric", metric="value", source=own.name, protocol=own.protocol
        )
        yield column, Measured(value=own.value)


def dense_measurements(experiment: Experiment) -> Measurements:
    """Every score of the dense model."""
    return measurements(experiment.dense_selection, experiment.dense_report)


def score_columns(experiment: Experiment) -> tuple[ScoreColumn, ...]:
    """Every column that any model has, headed: selection first, then report; by kind; else as they were measured, the
    dense model's first."""
    owners: dict[ScoreColumn, list[set[str]]] = {column: [] for column in dense_measurements(experiment)}
    for trial in sorted(experiment.trials, key=lambda trial: trial.spec.fingerprint):
        result = trial.result
        stages = [measurements(EvalScores(), scores) for scores in (trial.before, trial.after)]
        stages += [measurements(scores, EvalScores()) for scores in (result.before, result.after)] if result else []
        for column in (column for found in stages for column in found):
            owners.setdefault(column, []).append(set(trial.experiments))
    ordered = sorted(owners, key=lambda column: (column.role == "report", KINDS.index(column.kind)))
    return tuple(_headed(column, ordered, owners) for column in ordered)


def _headed(
    column: ScoreColumn, columns: Sequence[ScoreColumn], owners: dict[ScoreColumn, list[set[str]]]
) -> ScoreColumn:
    """The column with what tells it from the others of its name: what its protocol alone says, else the experiment
    whose trials have it, else a number."""

    def experiments(one: ScoreColumn) -> str:
        return ", ".join(sorted(set.intersection(*owners[one]))) if owners[one] else ""

    named = [one for one in columns if (one.role, one.kind, one.name) == (column.role, column.kind, column.name)]
    common = set.intersection(*(set(one.protocol.split(", ")) for one in named))
    note = "".join(f", {part}" for part in column.protocol.split(", ") if part not in common)
    alike = [one for one in named if one.protocol == column.protocol]
    place = alike.index(column)
    if place:
        owner = experiments(column)
        is_telling = owner and [experiments(one) for one in alike].count(owner) == 1
        note += f" ({owner if is_telling else place + 1})"
    return replace(column, note=note, occurrence=place + 1)


def protocol_notes(columns: Iterable[ScoreColumn]) -> dict[str, str]:
    """`{protocol: names of the columns that it holds for}`, for the foot of a table."""
    names: dict[str, list[str]] = {}
    for column in columns:
        names.setdefault(column.protocol, []).append(column.name)
    return {protocol: ", ".join(dict.fromkeys(of)) for protocol, of in names.items()}
