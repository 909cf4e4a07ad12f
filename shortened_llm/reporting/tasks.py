"""Tasks as papers show them: one line per model, one column per task, and each task paired with the dense model."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from shortened_llm.config import LOCAL_SUFFIX, TASK_SETS
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.paired import Difference, TaskDifference, mean_difference, task_difference
from shortened_llm.reporting.rows import TrialRow

TaskSet = tuple[ScoreColumn, ...]
"""Tasks of a plain mean, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLine:
    """One model on all tasks."""

    row: TrialRow | None
    """None for the dense model."""
    found: Measurements
    means: tuple[float | None, ...]
    """One for each set; None where the model lacks a task of it."""
    differences: dict[ScoreColumn, TaskDifference]
    """To the dense model, by task; empty for the dense model."""
    mean_differences: tuple[Difference | None, ...]
    """One for each set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksSection:
    """All models that were measured on tasks."""

    texts: tuple[ScoreColumn, ...]
    tasks: tuple[ScoreColumn, ...]
    sets: tuple[TaskSet, ...]
    """One unless experiments measured different tasks or protocols: a mean never mixes those."""
    lines: tuple[TaskLine, ...]
    """Dense first."""

    @property
    def set_titles(self) -> tuple[str, ...]:
        return set_titles(self.sets)

    @property
    def has_differences(self) -> bool:
        return any(line.differences for line in self.lines)

    @property
    def has_bits_per_byte(self) -> bool:
        return any(d.bits_per_byte for line in self.lines for d in line.differences.values())


def task_columns(columns: Iterable[ScoreColumn]) -> tuple[ScoreColumn, ...]:
    """The tasks of the report, in the order of the configuration."""
    return tuple(column for column in columns if column.kind == "task" and column.role == "report")


def task_sets(tasks: Sequence[ScoreColumn], models: Sequence[Measurements]) -> tuple[TaskSet, ...]:
    """The sets of tasks that a plain mean is taken over: each largest set that one model was measured on.

    Tasks of a measure that is no share of items, or that is better lower, are left out. No mean mixes numbers of
    shots, and none counts a task twice: the first column of each task is in one set, the second in another. The tasks
    of a published mean (`config.TASK_SETS`) are a set apart from all others.

    Args:
        models: of the trials; the dense model's, where there are none.
    """
    shares = [
        column
        for column in tasks
        if column.higher_is_better and all(0 <= found[column].value <= 1 for found in models if column in found)
    ]
    measured = _largest(tuple(column for column in shares if column in found) for found in models)
    alike = (of_shots for own in measured for of_shots in _by_shots(own))
    return _largest(part for own in alike for part in _without_repetition(own))


def _largest(sets: Iterable[TaskSet]) -> tuple[TaskSet, ...]:
    """Those that are no part of another, each once."""
    distinct = dict.fromkeys(sets)
    return tuple(own for own in distinct if own and not any(set(own) < set(other) for other in distinct))


def _by_shots(columns: Iterable[ScoreColumn]) -> list[TaskSet]:
    of_shots: dict[str, list[ScoreColumn]] = {}
    for column in columns:
        shots = re.search(r"\S+ shots", column.protocol)
        of_shots.setdefault(shots[0] if shots else "", []).append(column)
    return [tuple(own) for own in of_shots.values()]


def _without_repetition(columns: Iterable[ScoreColumn]) -> list[TaskSet]:
    of_task: dict[str, list[ScoreColumn]] = {}
    for column in columns:
        of_task.setdefault(column.source, []).append(column)
    by_place = zip_longest(*of_task.values())
    return [part for own in by_place for part in _published_apart([column for column in own if column is not None])]


def _published_apart(columns: Sequence[ScoreColumn]) -> list[TaskSet]:
    names = {column.source.removesuffix(LOCAL_SUFFIX) for column in columns}
    for published in TASK_SETS.values():
        if names > set(published):
            apart = tuple(column for column in columns if column.source.removesuffix(LOCAL_SUFFIX) in published)
            return [apart, *_published_apart([column for column in columns if column not in apart])]
    return [tuple(columns)]


def set_titles(sets: Sequence[TaskSet]) -> tuple[str, ...]:
    """`mean of 7 tasks`, or the one task; of several with one title, with what differs: `mean of 7 tasks, 5 shots`."""
    titles = [f"mean of {len(own)} tasks" if len(own) > 1 else own[0].title for own in sets]
    differing = [", ".join(dict.fromkeys(column.note.strip(", ") for column in own)) for own in sets]
    if len(set(zip(titles, differing, strict=True))) < len(sets):
        differing = [", ".join(column.title for column in own) for own in sets]
    return tuple(
        f"{title}, {said}" if titles.count(title) > 1 and said else title
        for title, said in zip(titles, differing, strict=True)
    )


def task_mean(found: Measurements, tasks: TaskSet) -> float | None:
    """Plain mean over the tasks; None where one was not measured."""
    values = [found[column].value for column in tasks if column in found]
    return sum(values) / len(values) if len(values) == len(tasks) else None


def differences(
    found: Measurements, dense: Measurements, tasks: Iterable[ScoreColumn]
) -> dict[ScoreColumn, TaskDifference]:
    """A model less the dense one, by task that both have."""
    paired: dict[ScoreColumn, TaskDifference] = {}
    for column in tasks:
        if column in found and column in dense:
            own, of_dense = found[column].task, dense[column].task
            assert own is not None
            assert of_dense is not None
            paired[column] = task_difference(own, of_dense)
    return paired


def tasks_section(
    rows: Sequence[TrialRow], dense: Measurements, columns: Sequence[ScoreColumn], texts: tuple[ScoreColumn, ...]
) -> TasksSection | None:
    """None where no task was measured.

    Args:
        texts: perplexities to show beside the tasks.
    """
    tasks = task_columns(columns)
    if not tasks:
        return None
    shown = [row for row in rows if row.is_best or any(column in row.after for column in tasks)]
    sets = task_sets(tasks, [row.after for row in shown if any(column in row.after for column in tasks)] or [dense])
    lines = [_line(None, dense, dense, tasks, sets), *(_line(row, row.after, dense, tasks, sets) for row in shown)]
    return TasksSection(texts=texts, tasks=tasks, sets=sets, lines=tuple(lines))


def _line(
    row: TrialRow | None,
    found: Measurements,
    dense: Measurements,
    tasks: Sequence[ScoreColumn],
    sets: Sequence[TaskSet],
) -> TaskLine:
    paired = differences(found, dense, tasks) if row else {}
    return TaskLine(
        row=row,
        found=found,
        means=tuple(task_mean(found, own) for own in sets),
        differences=paired,
        mean_differences=tuple(
            mean_difference([paired[column].value for column in own]) if set(own) <= set(paired) else None
            for own in sets
        ),
    )
