"""What was found, in sentences: the best trial of each size and what it costs in perplexity."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import Experiment
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.rows import TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSummary:
    """One size: how small, which trial, at what price."""

    lead: str
    """`6 of 30 blocks removed (16.1 % of parameters)`."""
    best: TrialRow | None
    choice: str
    """Which trial is best and out of how many, or why there is none."""
    scores: tuple[str, ...]
    """One sentence per text."""


def status_counts(rows: Sequence[TrialRow]) -> str:
    """`7 trials, 2 of them controls: 5 done, 1 failed, 1 not finished`."""
    controls = sum(row.is_control for row in rows)
    counts = Counter(row.status for row in rows)
    parts = [f"{counts[status]} {status}" for status in ("done", "failed", "not finished") if counts[status]]
    return (
        f"{len(rows)} trial{'' if len(rows) == 1 else 's'}"
        + (f", {controls} of them control{'' if controls == 1 else 's'}" if controls else "")
        + (f": {', '.join(parts)}" if parts else "")
    )


def size_summaries(experiment: Experiment, rows: Sequence[TrialRow], dense: Measurements) -> tuple[SizeSummary, ...]:
    """One summary per number of kept blocks, in the order of `rows`; controls are no candidates."""
    by_size: dict[int, list[TrialRow]] = {}
    for row in (row for row in rows if not row.is_control):
        by_size.setdefault(len(row.plan.kept_blocks), []).append(row)
    return tuple(_summary(experiment, size_rows, dense) for size_rows in by_size.values())


def _summary(experiment: Experiment, rows: Sequence[TrialRow], dense: Measurements) -> SizeSummary:
    best = next((row for row in rows if row.best_of_size), None)
    ratios = [row.plan.parameter_ratio for row in ([best] if best else rows)]
    share = " to ".join(dict.fromkeys((formats.percent(min(ratios)), formats.percent(max(ratios)))))
    removed = len(rows[0].plan.removed_blocks)
    lead = f"{removed} of {experiment.num_blocks} blocks removed ({share} of parameters)"
    if best is None:
        return SizeSummary(lead=lead, best=None, choice=f"no result to choose from ({status_counts(rows)}).", scores=())
    finished = sum(row.selection_nll is not None for row in rows)
    name = best.trial.spec.name
    choice = (
        f"the only finished trial is {name} (#{best.number})."
        if finished == 1
        else f"best of {finished} finished trials is {name} (#{best.number})."
    )
    return SizeSummary(lead=lead, best=best, choice=choice, scores=_sentences(best, dense))


def _sentences(best: TrialRow, dense: Measurements) -> tuple[str, ...]:
    texts = [column for column in best.after if not column.is_task]
    report = [column for column in texts if column.role == "report"]
    return tuple(_sentence(column, best, dense) for column in report or texts)


def _sentence(column: ScoreColumn, best: TrialRow, dense: Measurements) -> str:
    before, after, whole = best.before.get(column), best.after[column], dense.get(column)
    text = f"{column.title} ({column.role}): perplexity "
    text += f"{formats.perplexity(before.value)} before retraining → " if before else "after retraining "
    text += formats.perplexity(after.value) + (" after" if before else "")
    if whole:
        text += f"; dense {formats.perplexity(whole.value)}, so {after.value / whole.value:.2f} × dense"
    return text + "."


def trade_off(rows: Sequence[TrialRow], columns: Sequence[ScoreColumn]) -> tuple[str, ...]:
    """How far the headline may be trusted, from what was and was not measured."""
    if not any(row.selection_nll is not None for row in rows):
        return ("No trial has finished, so there is nothing to compare yet.",)
    statements = ["Selection scores chose the best of each size; the lowest of several is flattered by that choice."]
    if any(column.role == "report" for column in columns):
        statements.append("Report scores were not used to choose: quote those.")
    else:
        statements.append("No report scores were measured: the scores shown are the selection scores that chose.")
    statements.append("Fewer parameters are paid for in perplexity: no size is best for every use.")
    statements.append(
        "The dense model was retrained too, as a control: its gain is adaptation to the text, and part of every gain."
        if any(row.trial.spec.control == "dense" and row.status == "done" for row in rows)
        else "The dense model was not retrained, so a trained model's perplexity also holds what it learnt about its "
        "training text."
    )
    if any(len(row.criteria) > 1 for row in rows):
        statements.append("A plan that several criteria led to is one trial and carries every label.")
    return tuple(statements)
