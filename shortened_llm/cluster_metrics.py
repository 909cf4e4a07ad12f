"""What the cluster's Prometheus endpoints show of a search: the names, and gauges that any process may set.

Ray exports a gauge from the process that set it, through the metrics agent of its node, with `ray_` before its name. A
series ends some seconds after its process; what has to outlast a trial is set by the driver.
"""

from dataclasses import dataclass

from ray.util.metrics import Gauge

from shortened_llm import metrics

PREFIX = "shortened_llm_"
EXPERIMENT, TRIAL, STATE = "experiment", "trial", "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMetric:
    """A gauge with its tags."""

    name: str
    description: str
    tags: tuple[str, ...] = (EXPERIMENT,)

    @property
    def exported_name(self) -> str:
        """The name that Prometheus scrapes."""
        return f"ray_{self.name}"


def _of_trial(name: str, description: str) -> ClusterMetric:
    return ClusterMetric(name=PREFIX + name, description=description, tags=(EXPERIMENT, TRIAL))


OF_TRIALS = {
    metrics.TOKENS: _of_trial(metrics.TOKENS, "Tokens that the trial has trained on"),
    metrics.TOKENS_PER_SECOND: _of_trial(metrics.TOKENS_PER_SECOND, "Over all workers of the trial"),
    metrics.LOSS: _of_trial(metrics.LOSS, "Mean cross-entropy since the last report, nats per token"),
    metrics.VALIDATION_LOSS: _of_trial(metrics.VALIDATION_LOSS, "Mean cross-entropy on held-out text, nats per token"),
    metrics.GRADIENT_NORM: _of_trial(metrics.GRADIENT_NORM, "Norm before clipping, of the last step"),
    metrics.MFU: _of_trial(metrics.MFU, "Share of the device's peak FLOP/s that the model's arithmetic uses"),
    metrics.MEMORY_GIB: _of_trial(metrics.MEMORY_GIB, "Peak memory of one worker, GiB"),
    metrics.DATA_WAIT: _of_trial(metrics.DATA_WAIT, "Share of the time spent waiting for data"),
    metrics.CHECKPOINT_STALL: _of_trial(metrics.CHECKPOINT_STALL, "Time that the last report held up training, s"),
    metrics.SKIPPED_STEPS: _of_trial(metrics.SKIPPED_STEPS, "Steps left out because a gradient was not finite"),
    metrics.SECONDS_LEFT: _of_trial(metrics.SECONDS_LEFT, "Time that the run will still take, s"),
}
"""What training reports, by the name it has there (see `metrics.py`)."""
TRIALS = ClusterMetric(name=PREFIX + "trials", description="Trials in each state", tags=(EXPERIMENT, STATE))
ACCELERATOR_HOURS = ClusterMetric(
    name=PREFIX + metrics.ACCELERATOR_HOURS,
    description="Accelerator-hours of the experiment's training runs, as its report counts them",
)
EVALUATION_QUEUE_LENGTH = ClusterMetric(
    name=PREFIX + "evaluation_queue_length", description="Pieces of evaluation that wait for an evaluator"
)
BUSY_EVALUATORS = ClusterMetric(
    name=PREFIX + "busy_evaluators", description="Evaluators that measure something, or are being started for it"
)
ALL = (*OF_TRIALS.values(), TRIALS, ACCELERATOR_HOURS, EVALUATION_QUEUE_LENGTH, BUSY_EVALUATORS)


class Gauges:
    """Sets metrics of one experiment from the process that it was made in; a copy elsewhere is a new one there."""

    def __init__(self, experiment: str) -> None:
        self._experiment = experiment
        self._gauges: dict[str, Gauge] = {}

    def __reduce__(self) -> tuple[type["Gauges"], tuple[str]]:
        return Gauges, (self._experiment,)

    def set(self, metric: ClusterMetric, value: float, **tags: str) -> None:
        """Costs microseconds: Ray sends the last value of each gauge every few seconds."""
        gauge = self._gauges.get(metric.name)
        if gauge is None:
            gauge = self._gauges[metric.name] = Gauge(metric.name, metric.description, metric.tags)
        gauge.set(value, {EXPERIMENT: self._experiment, **tags})
