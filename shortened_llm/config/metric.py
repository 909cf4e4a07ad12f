"""By which score a search chooses."""

from shortened_llm.config.evaluation import SelectionConfig
from shortened_llm.config.search import SearchSection
from shortened_llm.records import Objective
from shortened_llm.records.objective import BITS_PER_BYTE, PERPLEXITY


def objective(search: SearchSection) -> Objective:
    """The form that a search and its report read."""
    return Objective(metric=search.metric, higher_is_better=search.metric_mode == "max")


def check_metric(search: SearchSection, selection: SelectionConfig) -> None:
    """Check that the metric is measured wherever candidates are compared.

    Raises:
        ValueError: naming the fields.
    """
    metric, tasks = search.metric, [task.task for task in selection.tasks]
    known = [PERPLEXITY, *tasks, *(f"{task}{BITS_PER_BYTE}" for task in tasks), *selection.metrics]
    if metric not in known:
        field = "metrics" if ":" in metric else "tasks"
        raise ValueError(
            f"search.metric is {metric!r}, which is not measured while the search runs: add it to "
            f"evaluation.selection.{field}; measured are {', '.join(known)}"
        )
    if tasks.count(metric.removesuffix(BITS_PER_BYTE)) > 1:
        raise ValueError(f"search.metric is {metric!r}, but evaluation.selection.tasks lists this task twice")
    is_own = metric in selection.metrics
    if is_own and search.metric_mode is None:
        raise ValueError(f"search.metric is {metric!r}; set search.metric_mode to min or max, whichever is better")
    if not is_own and search.metric_mode is not None:
        raise ValueError(f"search.metric_mode is given, but {metric!r} says itself which way is better; leave it out")
