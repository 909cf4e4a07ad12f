"""Which scores an experiment has: one column per thing measured and protocol, selection apart from report."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from shortened_llm.records import EvalScores, Experiment, PerplexityScore, TaskScore

Role = Literal["selection", "report"]
Stage = Literal["before", "after"]
Kind = Literal["text", "task", "bits_per_byte", "agreement", "metric"]
KINDS: tuple[Kind, ...] = ("text", "task", "bits_per_byte", "agreement", "metric")
"""In the order of the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumn:
    """What a number must share with another to be compared with it."""

    role: Role
    kind: Kind = "text"
    metric: str
    """`perplexity`, the metric of a task, `bits_per_byte`, `kl`, `top1`, or `value` of a user's own measure."""
    source: str
    """The text, the task, or the name of the user's own measure."""
    protocol: str
    occurrence: int = 1
    """Counts scores that carry the same source, metric and protocol: two files may have one name."""
    higher_is_better: bool = False

    @property
    def title(self) -> str:
        """`wiki`, or `wiki (2)` for a second text of that name, or `piqa acc`."""
        title = self.source if self.kind in ("text", "metric") else f"{self.source} {self.metric}"
        return title if self.occurrence == 1 else f"{title} ({self.occurrence})"


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
    """As in `records.PerplexityScore`."""


Measurements = dict[ScoreColumn, Measured]


def measurements(role: Role, scores: EvalScores) -> Measurements:
    """The scores of one model, by column; speed and memory are in `efficiency.py`."""
    seen: Counter[ScoreColumn] = Counter()
    found: Measurements = {}
    for first, measured in _scores(role, scores):
        seen[first] += 1
        column = ScoreColumn(
            role=role,
            kind=first.kind,
            metric=first.metric,
            source=first.source,
            protocol=first.protocol,
            occurrence=seen[first],
            higher_is_better=first.higher_is_better,
        )
        found[column] = measured
    return found


def _scores(role: Role, scores: EvalScores) -> Iterator[tuple[ScoreColumn, Measured]]:
    """Every score, as if it were the first of its column."""

    def column(kind: Kind, metric: str, source: str, protocol: str, higher_is_better: bool = False) -> ScoreColumn:
        return ScoreColumn(
            role=role, kind=kind, metric=metric, source=source, protocol=protocol, higher_is_better=higher_is_better
        )

    for text in scores.perplexity:
        measured = Measured(value=text.perplexity, num_items=text.num_predictions, text=text, notes=text.notes)
        yield column("text", "perplexity", text.source, text.protocol), measured
    for task in scores.tasks:
        measured = Measured(
            value=task.value, standard_error=task.standard_error, num_items=task.num_items, task=task, notes=task.notes
        )  # fmt: skip
        yield column("task", task.metric, task.task, task.protocol, task.higher_is_better), measured
        if task.bits_per_byte is not None:
            bits = Measured(value=task.bits_per_byte, num_items=len(task.item_bits_per_byte), task=task)
            yield column("bits_per_byte", "bits_per_byte", task.task, task.protocol), bits
    for agreement in scores.agreement:
        for metric, value in (("kl", agreement.kl), ("top1", agreement.top1)):
            measured = Measured(value=value, num_items=agreement.num_predictions, notes=agreement.notes)
            yield column("agreement", metric, agreement.source, agreement.protocol, metric == "top1"), measured
    for own in scores.metrics:
        yield column("metric", "value", own.name, own.protocol), Measured(value=own.value)


def dense_measurements(experiment: Experiment) -> Measurements:
    """Every score of the dense model."""
    return measurements("selection", experiment.dense_selection) | measurements("report", experiment.dense_report)


def ordered_columns(all_measurements: Iterable[Measurements]) -> tuple[ScoreColumn, ...]:
    """Every column that any model has: selection first, then report; by kind; else as measured."""
    columns = dict.fromkeys(column for found in all_measurements for column in found)
    return tuple(sorted(columns, key=lambda column: (column.role == "report", KINDS.index(column.kind))))
