"""Everything the templates show, computed once from the records."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortened_llm.records import BY_PERPLEXITY, Experiment
from shortened_llm.reporting.columns import Kind, Measurements, ScoreColumn, dense_measurements, score_columns
from shortened_llm.reporting.comparison import MethodsSection, methods_sections
from shortened_llm.reporting.efficiency import EfficiencyTable, efficiency_tables
from shortened_llm.reporting.headline import SizeSummary, size_summaries, status_counts
from shortened_llm.reporting.heat import HeatRow, heat_rows
from shortened_llm.reporting.missing import Partial, partial_report
from shortened_llm.reporting.notes import score_notes
from shortened_llm.reporting.pareto import PanelGroup, panel_groups, plotted_columns
from shortened_llm.reporting.race import Race, race
from shortened_llm.reporting.recommendation import Recommendation, recommend
from shortened_llm.reporting.recovery_lines import TargetRecovery, target_recovery
from shortened_llm.reporting.rows import Texts, TrialRow, criteria_sets, trial_rows
from shortened_llm.reporting.sparsity import SparseLine, sparse_lines
from shortened_llm.reporting.style import SeriesStyle, series_styles
from shortened_llm.reporting.tasks import TasksSection, tasks_section
from shortened_llm.reporting.ways import WaysTable, ways_tables


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
    """Value of the dense model, in nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """The experiment, and what follows from it."""

    experiment: Experiment
    rows: tuple[TrialRow, ...]
    chosen_by: str
    """By what the best of each size is chosen: `mean NLL`; more than one metric where experiments have others."""
    dense: Measurements
    columns: tuple[ScoreColumn, ...]
    selection_means: tuple[SelectionMean, ...]
    partial: Partial | None
    """None where nothing is missing."""
    sizes: tuple[SizeSummary, ...]
    status_counts: str
    panel_groups: tuple[PanelGroup, ...]
    tasks: TasksSection | None
    """None where no tasks were measured."""
    efficiency: tuple[EfficiencyTable, ...]
    heat: tuple[HeatRow, ...]
    styles: dict[tuple[str, ...], SeriesStyle]
    protocols: tuple[ProtocolLine, ...]
    ways: tuple[WaysTable, ...]
    """One for each target that several ways of shortening reached."""
    sparse: tuple[SparseLine, ...]
    """One for each plan that sets single weights to zero."""
    comparisons: tuple[MethodsSection, ...]
    race: Race | None
    """None where the search has no rungs."""
    recoveries: tuple[TargetRecovery, ...]
    """One for each target of the race."""
    recommendation: Recommendation | None
    """None where the user set no constraints."""

    @property
    def text_columns(self) -> tuple[ScoreColumn, ...]:
        """Texts that models are compared on."""
        return tuple(plotted_columns(self.columns))

    @property
    def lower_rows(self) -> tuple[TrialRow, ...]:
        """Trials whose candidates came to a higher rung."""
        return tuple(row for row in self.rows if self.race and row.number in self.race.passed)

    @property
    def greyed(self) -> frozenset[int]:
        """Numbers of trials that stopped at a rung, or that a longer one went on from."""
        return self.race.greyed if self.race else frozenset()

    def reasons(self, row: TrialRow) -> tuple[str, ...]:
        """Why a candidate was stopped at this trial."""
        return self.race.reasons.get(row.number, ()) if self.race else ()

    @property
    def last_rows(self) -> tuple[TrialRow, ...]:
        """All others: one of each candidate."""
        return tuple(row for row in self.rows if not self.race or row.number not in self.race.passed)

    @property
    def has_report_scores(self) -> bool:
        return any(column.role == "report" for column in self.columns)

    @property
    def has_controls(self) -> bool:
        return any(row.is_control for row in self.rows)

    @property
    def headline_columns(self) -> tuple[ScoreColumn, ...]:
        """The perplexities that sizes are summed up by; a mean of tasks has its protocols below the table of tasks."""
        return plotted_columns(self.columns) if any(size.facts for size in self.sizes) else ()

    def of_kind(self, *kinds: Kind) -> tuple[ScoreColumn, ...]:
        return tuple(column for column in self.columns if column.kind in kinds)

    def models_with(self, *kinds: Kind) -> tuple[tuple[TrialRow | None, Measurements], ...]:
        """Every model that has a score of these kinds; the dense model first, as None."""
        models = ((None, self.dense), *((row, row.after) for row in self.rows))
        return tuple((row, found) for row, found in models if any(column in found for column in self.of_kind(*kinds)))


def report_view(experiment: Experiment) -> ReportView:
    """Derive all that a report says."""
    rows = trial_rows(experiment)
    dense = dense_measurements(experiment)
    models = [dense, *(row.before for row in rows), *(row.after for row in rows)]
    columns = score_columns(experiment)
    texts = plotted_columns(columns)
    tasks = tasks_section(rows, dense, columns, texts)
    found = race(experiment, rows)
    return ReportView(
        experiment=experiment,
        recommendation=recommend(experiment, rows),
        rows=rows,
        chosen_by=", ".join(dict.fromkeys(row.trial.spec.objective.title for row in rows)) or BY_PERPLEXITY.title,
        dense=dense,
        columns=columns,
        selection_means=_selection_means(experiment, rows, columns),
        partial=partial_report(experiment, rows),
        sizes=size_summaries(experiment, rows, dense, columns, tasks),
        status_counts=status_counts(rows),
        panel_groups=panel_groups(experiment, rows, dense, texts, tasks.sets if tasks else ()),
        tasks=tasks,
        efficiency=efficiency_tables(rows),
        heat=heat_rows(experiment.unit_scores, rows),
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
        ways=ways_tables(experiment, rows),
        sparse=sparse_lines(rows),
        comparisons=methods_sections(experiment, rows, dense, texts),
        race=found,
        recoveries=tuple(target_recovery(one, experiment.dense_selection) for one in (found.targets if found else ())),
    )


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
