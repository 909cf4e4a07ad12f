"""What a search minimises."""

import math
from dataclasses import dataclass

from shortened_llm.records.evaluation import EvalScores, MetricScore, PerplexityScore, TaskScore

PERPLEXITY = "perplexity"
BITS_PER_BYTE = "/bits_per_byte"
"""Ending of the name of a task whose gold answers' bits per byte are minimised instead of its own metric."""

Part = PerplexityScore | TaskScore | MetricScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A number of each model, from its selection scores, by which a search chooses; the loss is lower where a model is
    better."""

    metric: str = PERPLEXITY
    """`perplexity`, a task, a task and `/bits_per_byte`, or `module:function`."""
    higher_is_better: bool = False
    """Which way a user's own measure is better; a task says so itself."""

    def parts(self, scores: EvalScores) -> tuple[Part, ...]:
        """The scores that the loss is computed from; none where they are missing."""
        if self.metric == PERPLEXITY:
            return scores.perplexity
        task = self.metric.removesuffix(BITS_PER_BYTE)
        tasks = tuple(score for score in scores.tasks if score.task == task)
        return tasks or tuple(score for score in scores.metrics if score.name == self.metric)

    def units(self, scores: EvalScores) -> tuple[str, ...]:
        """What two models must have in common to be compared."""
        return tuple(part.unit for part in self.parts(scores))

    def loss(self, scores: EvalScores) -> float:
        """The mean negative log-likelihood in nats per token, or the other metric, negated where a higher one is
        better; NaN where any score is missing."""
        if self.metric == PERPLEXITY:
            return scores.mean_nll
        for part in () if scores.missing else self.parts(scores):
            if isinstance(part, TaskScore) and self.metric.endswith(BITS_PER_BYTE):
                return math.nan if part.bits_per_byte is None else part.bits_per_byte
            if not isinstance(part, PerplexityScore):
                return -part.value if self.is_maximised(part) else part.value
        return math.nan

    def is_maximised(self, part: TaskScore | MetricScore) -> bool:
        """Whether a higher value of the metric is better."""
        if isinstance(part, MetricScore):
            return self.higher_is_better
        return part.higher_is_better and not self.metric.endswith(BITS_PER_BYTE)

    @property
    def title(self) -> str:
        """In words: `mean NLL`, `piqa`, `bits per byte of piqa`."""
        if self.metric == PERPLEXITY:
            return "mean NLL"
        task = self.metric.removesuffix(BITS_PER_BYTE)
        return self.metric if task == self.metric else f"bits per byte of {task}"

    @property
    def unit(self) -> str:
        """What differences are counted in: `nats`, `of piqa`, `bits per byte`."""
        if self.metric == PERPLEXITY:
            return "nats"
        return "bits per byte" if self.metric.endswith(BITS_PER_BYTE) else f"of {self.metric}"


BY_PERPLEXITY = Objective()
