"""Which scores an experiment has: one column per thing measured and protocol, selection apart from report."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    """Counts texts that have the same name and protocol."""
    higher_is_better: bool = False
    differs: str = field(default="", compare=False)
    """What its protocol says and that of another column of its name does not: `5 shots`."""

    @property
    def name(self) -> str:
        """`wiki`, or `piqa acc`; other columns may have it too."""
        return self.source if self.kind in ("text", "metric") else f"{self.source} {self.metric}"

    @property
    def note(self) -> str:
        """What tells it from the other columns of its name: `, 5 shots`, or ` (2)` for a second text; else empty."""
        differs = f", {self.differs}" if self.differs else ""
        return differs if self.occurrence == 1 else f"{differs} ({self.occurrence})"

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
    """As in `records.PerplexityScore`."""


Measurements = dict[ScoreColumn, Measured]


ColumnKey = tuple[ScoreColumn, str, int]
"""The first column of a name and protocol, the documents behind a score, and its place among the model's scores of that
column and those documents: records that do not name their documents are told apart by it alone."""


def known_columns(experiment: Experiment) -> dict[ColumnKey, ScoreColumn]:
    """The column of each thing that any model was measured on, the dense model's first.

    A text has one column in all models, whichever other texts a model lacks.
    """
    keys = dict.fromkeys(key for role, scores in _all_scores(experiment) for key, _ in _scores(role, scores))
    seen: Counter[ScoreColumn] = Counter()
    protocols: defaultdict[tuple[Role, Kind, str], set[str]] = defaultdict(set)
    for first, _, _ in keys:
        protocols[first.role, first.kind, first.name].add(first.protocol)
    columns = {}
    for key in keys:
        first = key[0]
        seen[first] += 1
        differs = _differing(first.protocol, protocols[first.role, first.kind, first.name])
        columns[key] = replace(first, occurrence=seen[first], differs=differs)
    return columns


def _all_scores(experiment: Experiment) -> Iterator[tuple[Role, EvalScores]]:
    yield "selection", experiment.dense_selection
    yield "report", experiment.dense_report
    for trial in sorted(experiment.trials, key=lambda trial: trial.spec.fingerprint):
        if trial.result:
            yield "selection", trial.result.before
            yield "selection", trial.result.after
        yield "report", trial.before
        yield "report", trial.after


def _differing(protocol: str, protocols: set[str]) -> str:
    """The parts of a protocol that not all of several have."""
    common = set.intersection(*(set(one.split(", ")) for one in protocols))
    return ", ".join(part for part in protocol.split(", ") if part not in common)


def measurements(role: Role, scores: EvalScores, columns: Mapping[ColumnKey, ScoreColumn]) -> Measurements:
    """The scores of one model, by column; speed and memory are in `efficiency.py`.

    Args:
        columns: from `known_columns`.
    """
    return {columns[key]: measured for key, measured in _scores(role, scores)}


def _scores(role: Role, scores: EvalScores) -> Iterator[tuple[ColumnKey, Measured]]:
    """Every score."""
    seen: Counter[tuple[ScoreColumn, str]] = Counter()

    def key(
        kind: Kind, metric: str, source: str, protocol: str, *, documents: str = "", higher_is_better: bool = False
    ) -> ColumnKey:
        first = ScoreColumn(
            role=role, kind=kind, metric=metric, source=source, protocol=protocol, higher_is_better=higher_is_better
        )
        seen[first, documents] += 1
        return first, documents, seen[first, documents]

    for text in scores.perplexity:
        measured = Measured(value=text.perplexity, num_items=text.num_predictions, text=text, notes=text.notes)
        yield key("text", "perplexity", text.source, text.protocol, documents=text.documents), measured
    for task in scores.tasks:
        measured = Measured(
            value=task.value, standard_error=task.standard_error, num_items=task.num_items, task=task, notes=task.notes
        )  # fmt: skip
        yield key("task", task.metric, task.task, task.protocol, higher_is_better=task.higher_is_better), measured
        if task.bits_per_byte is not None:
            bits = Measured(value=task.bits_per_byte, num_items=len(task.item_bits_per_byte), task=task)
            yield key("bits_per_byte", "bits_per_byte", task.task, task.protocol), bits
    for agreement in scores.agreement:
        for metric, value in (("kl", agreement.kl), ("top1", agreement.top1)):
            measured = Measured(value=value, num_items=agreement.num_predictions, notes=agreement.notes)
            found = key(
                "agreement", metric, agreement.source, agreement.protocol,
                documents=agreement.documents, higher_is_better=metric == "top1",
            )  # fmt: skip
            yield found, measured
    for own in scores.metrics:
        yield key("metric", "value", own.name, own.protocol), Measured(value=own.value)


def dense_measurements(experiment: Experiment) -> Measurements:
    """Every score of the dense model."""
    columns = known_columns(experiment)
    selection, report = experiment.dense_selection, experiment.dense_report
    return measurements("selection", selection, columns) | measurements("report", report, columns)


def protocol_notes(columns: Iterable[ScoreColumn]) -> dict[str, str]:
    """`{protocol: names of the columns that it holds for}`, for the foot of a table."""
    names: dict[str, list[str]] = {}
    for column in columns:
        names.setdefault(column.protocol, []).append(column.name)
    return {protocol: ", ".join(dict.fromkeys(of)) for protocol, of in names.items()}


def ordered_columns(all_measurements: Iterable[Measurements]) -> tuple[ScoreColumn, ...]:
    """Every column that any model has: selection first, then report; by kind; else as measured."""
    columns = dict.fromkeys(column for found in all_measurements for column in found)
    return tuple(sorted(columns, key=lambda column: (column.role == "report", KINDS.index(column.kind))))
