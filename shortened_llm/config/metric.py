"""The field `search.metric`."""

from collections.abc import Mapping

from pydantic import Field, model_validator

from shortened_llm.config.evaluation import SelectionConfig
from shortened_llm.fields import Section
from shortened_llm.records import Objective
from shortened_llm.records.objective import BITS_PER_BYTE, PERPLEXITY


class MetricConfig(Section):
    """The score by which candidates are compared."""

    name: str = Field(PERPLEXITY, min_length=1)
    """perplexity: the mean of the log-perplexities of evaluation.selection.perplexity; a task of
    evaluation.selection.tasks, by the metric that the report shows, or with /bits_per_byte behind it by that of its
    gold answers, which moves where accuracy stands still; or one of evaluation.selection.metrics."""
    higher_is_better: bool | None = None
    """Which way a measure of your own is better, for which it must be given; a task says it itself."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return value if isinstance(value, (Mapping, MetricConfig)) else {"name": value}

    @property
    def record(self) -> Objective:
        """The form that a search and its report read."""
        return Objective(metric=self.name, higher_is_better=bool(self.higher_is_better))


def check_metric(metric: MetricConfig, selection: SelectionConfig) -> None:
    """Check that the metric is measured wherever candidates are compared.

    Raises:
        ValueError: naming the fields.
    """
    tasks = [task.task for task in selection.tasks]
    known = [PERPLEXITY, *tasks, *(f"{task}{BITS_PER_BYTE}" for task in tasks), *selection.metrics]
    if metric.name not in known:
        field = "metrics" if ":" in metric.name else "tasks"
        raise ValueError(
            f"search.metric is {metric.name!r}, which is not measured while the search runs: add it to "
            f"evaluation.selection.{field}; measured are {', '.join(known)}"
        )
    if tasks.count(metric.name.removesuffix(BITS_PER_BYTE)) > 1:
        raise ValueError(f"search.metric is {metric.name!r}, but evaluation.selection.tasks lists this task twice")
    is_own = metric.name in selection.metrics
    if is_own and metric.higher_is_better is None:
        raise ValueError(
            f"search.metric is {metric.name!r}; say which way is better: "
            f"{{name: '{metric.name}', higher_is_better: true or false}}"
        )
    if not is_own and metric.higher_is_better is not None:
        raise ValueError(f"search.metric.higher_is_better is given, but {metric.name!r} says it itself; leave it out")
