"""What is measured of which models."""

from shortened_llm.config import ExperimentConfig
from shortened_llm.data.sources import TextRoles
from shortened_llm.evaluation.task_data import hub_commits
from shortened_llm.evaluation.units import AgreementUnit, MetricUnit, TaskUnit, TextUnit, Unit
from shortened_llm.records import ModelRef


def selection_units(config: ExperimentConfig, roles: TextRoles) -> tuple[TextUnit, ...]:
    """What steers the search."""
    sources = config.evaluation.selection.perplexity
    return tuple(TextUnit(documents=d, source=s) for d, s in zip(roles.selection, sources, strict=True))


def report_units(config: ExperimentConfig, roles: TextRoles) -> tuple[TextUnit, ...]:
    """Texts measured for every model after the search."""
    sources = config.evaluation.report.perplexity
    return tuple(TextUnit(documents=d, source=s) for d, s in zip(roles.report, sources, strict=True))


def choice_units(config: ExperimentConfig, roles: TextRoles, dense: ModelRef) -> tuple[Unit, ...]:
    """What is measured for the dense model, the best of each size and the controls."""
    evaluation, report = config.evaluation, config.evaluation.report
    tasks = (
        TaskUnit(
            config=task,
            directory=evaluation.task_directory,
            limit=task.limit or evaluation.task_limit,
            hub_commits=hub_commits(task.task, evaluation.task_directory),
        )
        for task in report.tasks
    )
    agreement = (
        AgreementUnit(documents=documents, source=source, dense=dense)
        for documents, source in zip(roles.agreement, report.agreement, strict=True)
    )
    return (*tasks, *agreement, *(MetricUnit(path=path) for path in report.metrics))
