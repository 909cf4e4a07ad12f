"""Which scores an experiment has: one column per text and protocol, selection apart from report."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from shortened_llm.records import EvalScores, Experiment, PerplexityScore

Role = Literal["selection", "report"]
Stage = Literal["before", "after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreColumn:
    """What a number must share with another to be compared with it."""

    role: Role
    metric: str
    """`perplexity`, or the metric of a task."""
    source: str
    """The text, or the task."""
    protocol: str
    occurrence: int = 1
    """Counts scores that carry the same source, metric and protocol: two files may have one name."""
    is_task: bool = False

    @property
    def title(self) -> str:
        """`wiki`, or `wiki (2)` for a second text of that name, or `piqa acc`."""
        title = f"{self.source} {self.metric}" if self.is_task else self.source
        return title if self.occurrence == 1 else f"{title} ({self.occurrence})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One number of a column."""

    value: float
    standard_error: float | None
    num_items: int
    """Predictions, or task items."""
    text: PerplexityScore | None = None
    """The whole score, where it is a perplexity."""


Measurements = dict[ScoreColumn, Measured]


def measurements(role: Role, scores: EvalScores) -> Measurements:
    """The scores of one model, by column."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found: Measurements = {}
    for text in scores.perplexity:
        key = ("perplexity", text.source, text.protocol)
        seen[key] += 1
        column = ScoreColumn(
            role=role, metric="perplexity", source=text.source, protocol=text.protocol, occurrence=seen[key]
        )
        found[column] = Measured(value=text.perplexity, standard_error=None, num_items=text.num_predictions, text=text)
    for task in scores.tasks:
        key = (task.metric, task.task, task.protocol)
        seen[key] += 1
        column = ScoreColumn(
            role=role, metric=task.metric, source=task.task, protocol=task.protocol, occurrence=seen[key], is_task=True
        )
        found[column] = Measured(value=task.value, standard_error=task.standard_error, num_items=task.num_items)
    return found


def dense_measurements(experiment: Experiment) -> Measurements:
    """Every score of the dense model."""
    return measurements("selection", experiment.dense_selection) | measurements("report", experiment.dense_report)


def ordered_columns(all_measurements: Iterable[Measurements]) -> tuple[ScoreColumn, ...]:
    """Every column that any model has: selection first, then report; perplexities before tasks; else as measured."""
    columns = dict.fromkeys(column for found in all_measurements for column in found)
    return tuple(sorted(columns, key=lambda column: (column.role == "report", column.is_task)))
