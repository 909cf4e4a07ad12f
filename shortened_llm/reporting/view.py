"""Everything the templates show, computed once from the records."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import Experiment
from shortened_llm.reporting.columns import Measurements, ScoreColumn, Stage, dense_measurements, ordered_columns
from shortened_llm.reporting.comparison import MethodsSection, methods_section
from shortened_llm.reporting.headline import SizeSummary, size_summaries, status_counts, trade_off
from shortened_llm.reporting.pareto import ParetoPanel, pareto_panel, plotted_columns
from shortened_llm.reporting.rows import TrialRow, criteria_sets, trial_rows
from shortened_llm.reporting.style import SeriesStyle, series_styles


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A score in the table of trials, and the stages it has a cell for."""

    column: ScoreColumn
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolLine:
    """How one column of numbers was measured."""

    column: ScoreColumn
    num_items: tuple[int, ...]
    """Predictions or task items; more than one number where models were not measured on the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """The experiment, and what follows from it."""

    experiment: Experiment
    rows: tuple[TrialRow, ...]
    dense: Measurements
    columns: tuple[ScoreColumn, ...]
    table_columns: tuple[TableColumn, ...]
    sizes: tuple[SizeSummary, ...]
    trade_off: tuple[str, ...]
    status_counts: str
    panels: tuple[ParetoPanel, ...]
    styles: dict[tuple[str, ...], SeriesStyle]
    protocols: tuple[ProtocolLine, ...]
    methods: tuple[str, ...]
    comparison: MethodsSection | None
    """None where there are no two retrained models to compare."""

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
        return any(column.is_task for column in self.columns)

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
    columns = ordered_columns(models)
    return ReportView(
        experiment=experiment,
        rows=rows,
        dense=dense,
        columns=columns,
        table_columns=tuple(TableColumn(column=column, stages=_stages(column, rows)) for column in columns),
        sizes=size_summaries(experiment, rows, dense),
        trade_off=trade_off(rows, columns),
        status_counts=status_counts(rows),
        panels=tuple(
            pareto_panel(column, rows, dense, experiment.dense_parameters) for column in plotted_columns(columns)
        ),
        styles=series_styles(criteria_sets(experiment)),
        protocols=tuple(
            ProtocolLine(
                column=column,
                num_items=tuple(sorted({found[column].num_items for found in models if column in found})),
            )
            for column in columns
        ),
        methods=tuple(dict.fromkeys(row.method for row in rows)),
        comparison=methods_section(experiment, rows, dense, plotted_columns(columns)),
    )


def _stages(column: ScoreColumn, rows: Sequence[TrialRow]) -> tuple[Stage, ...]:
    """Tasks are rarely measured before retraining; then the cell would say nothing in every row."""
    if column.is_task and not any(column in row.before for row in rows):
        return ("after",)
    return ("before", "after")
