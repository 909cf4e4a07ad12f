"""Everything the templates show, computed once from the records."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shortened_llm.records import Experiment
from shortened_llm.reporting.columns import (
    Kind,
    Measurements,
    ScoreColumn,
    dense_measurements,
    score_columns,
)
from shortened_llm.reporting.comparison import MethodsSection, methods_section
from shortened_llm.reporting.efficiency import EfficiencyTable, efficiency_tables
from shortened_llm.reporting.headline import SizeSummary, size_summaries, status_counts, trade_off
from shortened_llm.reporting.heat import HeatRow, heat_rows
from shortened_llm.reporting.missing import Partial, partial_report
from shortened_llm.reporting.notes import score_notes
from shortened_llm.reporting.pareto import PanelGroup, panel_groups, plotted_columns
from shortened_llm.reporting.rows import Texts, TrialRow, criteria_sets, trial_rows
from shortened_llm.reporting.style import SeriesStyle, series_styles
from shortened_llm.reporting.tasks import TasksSection, tasks_section


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolLine:
    """How one column of numbers was measured."""

    column: ScoreColumn
    num_items: tuple[int | None, ...]
    """Predictions or task items; more than one number where models were not measured on the same."""
    notes: tuple[str, ...]
    """On single models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionMean:
    """What a selection NLL is a mean over: one, unless experiments chose by different texts."""

    texts: Texts
    name: str
    """`wiki, c4`: the titles of their columns."""
    dense: float | None
    """Of the dense model, in nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherLine:
    """One model's scores that are neither perplexities nor tasks."""

    row: TrialRow | None
    """None for the dense model."""
    found: Measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentMethods:
    """Retraining methods side by side."""

    experiment: str
    """Empty where there is one alone."""
    section: MethodsSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """The experiment, and what follows from it."""

    experiment: Experiment
    rows: tuple[TrialRow, ...]
    dense: Measurements
    columns: tuple[ScoreColumn, ...]
    selection_means: tuple[SelectionMean, ...]
    partial: Partial | None
    """None where nothing is missing."""
    sizes: tuple[SizeSummary, ...]
    trade_off: tuple[str, ...]
    status_counts: str
    panel_groups: tuple[PanelGroup, ...]
    tasks: TasksSection | None
    """None where no tasks were measured."""
    efficiency: tuple[EfficiencyTable, ...]
    heat: tuple[HeatRow, ...]
    styles: dict[tuple[str, ...], SeriesStyle]
    protocols: tuple[ProtocolLine, ...]
    methods: tuple[str, ...]
    comparisons: tuple[ExperimentMethods, ...]
    """None without two retrained models to compare. Experiments may differ in data, so each has its own."""

    @property
    def has_report_scores(self) -> bool:
        return any(column.role == "report" for column in self.columns)

    @property
    def has_controls(self) -> bool:
        return any(row.is_control for row in self.rows)

    @property
    def has_incidents(self) -> bool:
        return any(row.incidents for row in self.rows)

    @property
    def has_tasks(self) -> bool:
        return any(column.kind == "task" for column in self.columns)

    @property
    def has_several_experiments(self) -> bool:
        return any(row.trial.experiments for row in self.rows)

    @property
    def headline_columns(self) -> tuple[ScoreColumn, ...]:
        """The perplexities that sizes are summed up by; a mean of tasks has its protocols below the table of tasks."""
        return plotted_columns(self.columns) if any(size.facts for size in self.sizes) else ()

    def of_kind(self, *kinds: Kind) -> tuple[ScoreColumn, ...]:
        return tuple(column for column in self.columns if column.kind in kinds)

    def other_lines(self, kind: Kind) -> tuple[OtherLine, ...]:
        """Every model that has a score of a kind, the dense model first."""
        columns = self.of_kind(kind)
        lines = (OtherLine(row=None, found=self.dense), *(OtherLine(row=row, found=row.after) for row in self.rows))
        return tuple(line for line in lines if any(column in line.found for column in columns))

    @property
    def failures(self) -> dict[str, tuple[TrialRow, ...]]:
        """Cause -> the trials that failed of it: one fault often takes down all."""
        causes: dict[str, tuple[TrialRow, ...]] = {}
        for row in self.rows:
            if row.status == "failed" and row.trial.failure is not None:
                causes[row.trial.failure] = (*causes.get(row.trial.failure, ()), row)
        return causes


def report_view(experiment: Experiment) -> ReportView:
    """Derive all that a report says."""
    rows = trial_rows(experiment)
    dense = dense_measurements(experiment)
    models = [dense, *(row.before for row in rows), *(row.after for row in rows)]
    columns = score_columns(experiment)
    texts = plotted_columns(columns)
    tasks = tasks_section(rows, dense, columns, texts)
    return ReportView(
        experiment=experiment,
        rows=rows,
        dense=dense,
        columns=columns,
        selection_means=_selection_means(experiment, rows, columns),
        partial=partial_report(experiment, rows),
        sizes=size_summaries(experiment, rows, dense, columns, tasks),
        trade_off=trade_off(rows, columns),
        status_counts=status_counts(rows),
        panel_groups=panel_groups(experiment, rows, dense, texts, tasks.sets if tasks else ()),
        tasks=tasks,
        efficiency=efficiency_tables(rows),
        heat=heat_rows(experiment.block_scores, rows),
        styles=series_styles(criteria_sets(experiment)),
        protocols=tuple(
            ProtocolLine(
                column=column,
                num_items=tuple(
                    sorted({n for found in models if column in found if (n := found[column].num_items) is not None})
                ),
                notes=score_notes(column, dense, rows),
            )
            for column in columns
            if column.kind != "bits_per_byte" and column.metric != "top1"  # by the protocol of their task, and of kl
        ),
        methods=tuple(dict.fromkeys(row.method for row in rows)),
        comparisons=_comparisons(experiment, rows, dense, texts),
    )


def _comparisons(
    experiment: Experiment, rows: Sequence[TrialRow], dense: Measurements, texts: Sequence[ScoreColumn]
) -> tuple[ExperimentMethods, ...]:
    found = []
    for name in dict.fromkeys(name for row in rows for name in row.trial.experiments or ("",)):
        own = [row for row in rows if name in (row.trial.experiments or ("",))]
        one = replace(experiment, trials=tuple(row.trial for row in experiment_order(experiment, own)))
        measured = [column for column in texts if any(column in row.after for row in own)] if name else texts
        if section := methods_section(one, own, dense, measured):
            found.append(ExperimentMethods(experiment=name, section=section))
    return tuple(found)


def experiment_order(experiment: Experiment, rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Rows in the order of the experiment's trials."""
    places = {id(trial): place for place, trial in enumerate(experiment.trials)}
    return sorted(rows, key=lambda row: places[id(row.trial)])


def _selection_means(
    experiment: Experiment, rows: Sequence[TrialRow], columns: Sequence[ScoreColumn]
) -> tuple[SelectionMean, ...]:
    dense = {text.unit: text.mean_nll for text in experiment.dense_selection.perplexity}
    titles = {column.unit: column.title for column in columns if (column.role, column.kind) == ("selection", "text")}
    found = dict.fromkeys(row.selection_texts for row in rows if row.selection_texts) or {tuple(dense): None}
    return tuple(
        SelectionMean(
            texts=texts,
            name=", ".join(titles[text] for text in texts),
            dense=sum(dense[text] for text in texts) / len(texts) if texts and set(texts) <= set(dense) else None,
        )
        for texts in found
    )
