"""What a report does not have yet, or could not get, each with its cause."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shortened_llm.records import EvalScores, Experiment, MissingScore
from shortened_llm.reporting.rows import STATUSES, TrialRow, quoted

DENSE = 0
"""Stands for the dense model among the numbers of trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """Why a report is not whole."""

    finished: int
    trials: int
    statements: tuple[str, ...]
    """What is missing, in short."""
    missing: dict[MissingScore, tuple[int, ...]]
    """Numbers of the trials that lack a score for one cause, ascending; 0 is the dense model."""

    @property
    def lead(self) -> str:
        return f"This report is partial: {self.finished} of {self.trials} trials finished."


def partial_report(experiment: Experiment, rows: Sequence[TrialRow]) -> Partial | None:
    """None where every trial finished and has every score that was asked for."""
    causes: dict[MissingScore, set[int]] = {}
    for number, missing in _missing(experiment, rows):
        causes.setdefault(missing, set()).add(number)
    counts = Counter(row.status for row in rows)
    statements = [f"{counts[status]} {status}" for status in STATUSES[1:] if counts[status]]
    if number := sum(map(len, causes.values())):
        statements.append(f"{number} score{'' if number == 1 else 's'} missing")
    if unmeasured := _without_report(experiment, rows):
        statements.append(
            f"report scores of {unmeasured} finished trial{'' if unmeasured == 1 else 's'} not measured yet"
        )
    if not statements:
        return None
    missing_of = {missing: tuple(sorted(numbers)) for missing, numbers in causes.items()}
    return Partial(finished=counts["done"], trials=len(rows), statements=tuple(statements), missing=missing_of)


def missing_scores(row: TrialRow) -> tuple[MissingScore, ...]:
    """Every missing score of one trial, once."""
    result = row.trial.result
    of_selection = (result.before, result.after) if result else ()
    found = [score for scores in (*of_selection, row.trial.before, row.trial.after) for score in scores.missing]
    return tuple(dict.fromkeys(found))


def _missing(experiment: Experiment, rows: Sequence[TrialRow]) -> Iterator[tuple[int, MissingScore]]:
    for scores in (experiment.dense_selection, experiment.dense_report):
        yield from ((DENSE, score) for score in scores.missing)
    for row in rows:
        yield from ((row.number, score) for score in missing_scores(row))


def _without_report(experiment: Experiment, rows: Sequence[TrialRow]) -> int:
    """Finished trials that the report quotes without any score of its texts, though the dense model has some."""
    if not experiment.dense_report.perplexity:
        return 0
    asked = quoted(experiment.trials)
    return sum(
        row.status == "done" and row.trial.spec.fingerprint in asked and row.trial.after == EvalScores() for row in rows
    )
