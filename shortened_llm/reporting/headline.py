"""What was found, in words: the best trial of each size and what it costs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shortened_llm.records import Bin, Experiment
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import Measurements, ScoreColumn
from shortened_llm.reporting.efficiency import GIB, shape, shape_name
from shortened_llm.reporting.rows import STATUSES, TrialRow, contenders
from shortened_llm.reporting.tasks import TasksSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One price or gain."""

    about: str
    """`perplexity, wiki`, `mean of 7 tasks`, `speed`, `peak memory`, `training`."""
    key: str
    """The number to remember, such as `1.37 × dense`."""
    also: str
    """What it is made of; may be empty."""

    @property
    def sentence(self) -> str:
        return f"{self.about} {self.key}" + (f" ({self.also})" if self.also else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSummary:
    """One size: how small, which trial, at what price."""

    lead: str
    """`24 of 30 blocks`."""
    size: str
    """`113.3 M parameters, 15.8 % fewer`."""
    best: TrialRow | None
    choice: str
    """Out of how many the trial is the best, or why there is none."""
    facts: tuple[Fact, ...]


def status_counts(rows: Sequence[TrialRow]) -> str:
    """`7 trials, 2 of them controls: 5 done, 1 waiting, 1 failed`"""
    controls = sum(row.is_control for row in rows)
    counts = Counter(row.status for row in rows)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    return (
        f"{len(rows)} trial{'' if len(rows) == 1 else 's'}"
        + (f", {controls} of them control{'' if controls == 1 else 's'}" if controls else "")
        + (f": {', '.join(parts)}" if parts else "")
    )


def size_summaries(
    experiment: Experiment,
    rows: Sequence[TrialRow],
    dense: Measurements,
    columns: Sequence[ScoreColumn],
    tasks: TasksSection | None,
) -> tuple[SizeSummary, ...]:
    """One summary per target and best trial, in the order of `rows`; controls are no candidates."""
    by_target: dict[Bin, list[TrialRow]] = {}
    for row in (row for row in rows if not row.is_control):
        for target in row.plan.targets:
            by_target.setdefault(target, []).append(row)
    summaries = []
    for target, own in by_target.items():
        found: list[TrialRow | None] = [row for row in own if target in row.best_of]
        summaries += [_summary(experiment, target, own, best, dense, columns, tasks) for best in found or [None]]
    return tuple(summaries)


def _summary(
    experiment: Experiment,
    target: Bin,
    rows: Sequence[TrialRow],
    best: TrialRow | None,
    dense: Measurements,
    columns: Sequence[ScoreColumn],
    tasks: TasksSection | None,
) -> SizeSummary:
    plans = [row.plan for row in ([best] if best else rows)]
    parameters = _range([plan.size.parameters for plan in plans], formats.parameters)
    fewer = _range([plan.parameter_ratio for plan in plans], formats.percent)
    if best is None:
        choice = f"No result to choose from ({status_counts(rows)})."
    else:
        finished = len(contenders([row.trial for row in rows])[target, best.basis])
        choice = "The only finished trial." if finished == 1 else f"Best of {finished} finished trials."
        if best.learning_rates and any(row.trial.spec.candidate for row in rows):
            rung = f"with {formats.ratio(best.rung)} of the tokens, the most that any came to:"
            choice = f"{choice[:-1]} {rung}"
    facts: tuple[Fact, ...] = ()
    if best:
        facts = (*_texts(best, dense, columns), *_tasks(best, tasks), *_efficiency(best), _training(best))
    return SizeSummary(
        lead=formats.bin_name(target, experiment.dense_size.blocks),
        size=f"{parameters} parameters, {fewer} fewer",
        best=best,
        choice=choice,
        facts=facts,
    )


def _range(numbers: Sequence[float], write: Callable[[float], str]) -> str:
    """`a`, or `a to b`, the smallest and the largest."""
    return " to ".join(dict.fromkeys((write(min(numbers)), write(max(numbers)))))


def _texts(best: TrialRow, dense: Measurements, columns: Sequence[ScoreColumn]) -> tuple[Fact, ...]:
    texts = [column for column in columns if column.kind == "text" and column in best.after]
    report = [column for column in texts if column.role == "report"]
    return tuple(_perplexity(column, best, dense) for column in report or texts)


def _perplexity(column: ScoreColumn, best: TrialRow, dense: Measurements) -> Fact:
    before, after, whole = best.before.get(column), best.after[column], dense.get(column)
    value = formats.perplexity(after.value)
    also = [f"{value} against {formats.perplexity(whole.value)}"] if whole else []
    at_once = ", without rounds" if best.trial.spec.rounds else ""
    also += [f"{formats.perplexity(before.value)} before retraining{at_once}"] if before else []
    return Fact(
        about=f"perplexity, {column.title}" + (" (selection)" if column.role == "selection" else ""),
        key=f"{formats.times(after.value / whole.value)} dense" if whole else value,
        also="; ".join(also),
    )


def _tasks(best: TrialRow, tasks: TasksSection | None) -> tuple[Fact, ...]:
    line = next((line for line in tasks.lines if line.row is best), None) if tasks else None
    if tasks is None or line is None:
        return ()
    facts = []
    for index, title in enumerate(tasks.set_titles):
        mean, difference = line.means[index], line.mean_differences[index]
        if mean is None:
            continue
        key, also = formats.accuracy(mean), ""
        if difference:
            key, also = formats.difference(difference.mean, difference.standard_error), f"{key} against "
            also += formats.accuracy(tasks.lines[0].means[index])
            also += "" if difference.standard_error is not None else "; not paired by item"
        facts.append(Fact(about=title, key=key, also=also))
    return tuple(facts)


def _efficiency(best: TrialRow) -> tuple[Fact, ...]:
    score = best.trial.after.efficiency
    if score is None or not score.points:
        return ()
    small, large = (extreme(score.points, key=lambda point: shape(point.model)) for extreme in (min, max))
    own, dense = large.model.peak_memory_bytes / GIB, large.dense.peak_memory_bytes / GIB
    ideal = f"ideal {formats.times(small.ideal_speed_up)}; {shape_name(shape(small.model))}"
    sizes = (
        f"{formats.significant(own, 3)} against {formats.significant(dense, 3)} GiB; {shape_name(shape(large.model))}"
    )
    return (
        Fact(about="speed", key=f"{formats.times(small.speed_up)} dense", also=ideal),
        Fact(about="peak memory", key=f"{formats.times(own / dense)} dense", also=sizes),
    )


def _training(best: TrialRow) -> Fact:
    if not best.tokens:
        return Fact(about="training", key="none", also="")
    hours = f"{formats.hours(best.accelerator_seconds)} accelerator hours" if best.accelerator_seconds else ""
    return Fact(about="training", key=f"{formats.compact(best.tokens)} tokens", also=hours)
