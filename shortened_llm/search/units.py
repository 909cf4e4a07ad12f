"""What is measured of which models."""

from collections.abc import Iterator, Sequence

from shortened_llm.config import ExperimentConfig, TaskConfig
from shortened_llm.data.sources import TextRoles
from shortened_llm.evaluation.task_data import hub_commits
from shortened_llm.evaluation.units import AgreementUnit, MetricUnit, TaskUnit, TextUnit, Unit
from shortened_llm.records import ModelRef


def selection_units(config: ExperimentConfig, roles: TextRoles) -> tuple[Unit, ...]:
    """What steers the search, measured for every trial."""
    selection = config.evaluation.selection
    texts = zip(roles.selection, selection.perplexity, strict=True)
    return (
        *(TextUnit(documents=documents, source=source) for documents, source in texts),
        *_task_units(config, selection.tasks),
        *(MetricUnit(path=path) for path in selection.metrics),
    )


def report_units(config: ExperimentConfig, roles: TextRoles) -> tuple[TextUnit, ...]:
    """Texts measured for every model after the search."""
    sources = config.evaluation.report.perplexity
    return tuple(TextUnit(documents=d, source=s) for d, s in zip(roles.report, sources, strict=True))


def choice_units(config: ExperimentConfig, roles: TextRoles, dense: ModelRef) -> tuple[Unit, ...]:
    """What is measured for the dense model, the best of each size and the controls."""
    report = config.evaluation.report
    agreement = (
        AgreementUnit(documents=documents, source=source, dense=dense)
        for documents, source in zip(roles.agreement, report.agreement, strict=True)
    )
    return (*_task_units(config, report.tasks), *agreement, *(MetricUnit(path=path) for path in report.metrics))


def _task_units(config: ExperimentConfig, tasks: Sequence[TaskConfig]) -> Iterator[TaskUnit]:
    evaluation = config.evaluation
    for task in tasks:
        yield TaskUnit(
            config=task,
            directory=evaluation.task_directory,
            limit=task.limit or evaluation.task_limit,
            hub_commits=hub_commits(task.task, evaluation.task_directory),
        )
