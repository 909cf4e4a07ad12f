"""What was measured of a model."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityScore:
    """Perplexity of one model on one text under one protocol."""

    unit: str
    """Fingerprint of what is measured, and how: scores of one unit can be compared; see `evaluation/units.py`."""
    source: str
    protocol: str
    perplexity: float
    mean_nll: float
    """Nats per predicted token."""
    num_predictions: int
    document_nll: tuple[float, ...]
    """Summed negative log-likelihood of the predictions in each document, in nats, to 4 decimals; documents in their
    order in the text, those without a prediction left out."""
    document_predictions: tuple[int, ...]
    """Predictions in each of these documents. Equal between models that share tokenizer and protocol."""
    notes: tuple[str, ...] = ()
    """How this measurement differed from what was asked for, such as smaller batches where memory was short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One model on one lm-eval task or group."""

    unit: str
    """See `PerplexityScore`."""
    task: str
    metric: str
    value: float
    standard_error: float | None
    num_items: int
    protocol: str
    higher_is_better: bool
    item_values: tuple[float, ...] = ()
    """The metric of each item, in the order of the data, the tasks of a group one after another; empty where the value
    is no mean over items. Equal positions are equal items between models that share a protocol."""
    item_answers: tuple[int, ...] = ()
    """Index of the choice that the model prefers by this metric, for each item of a multiple-choice task."""
    item_bits_per_byte: tuple[float, ...] = ()
    """Bits per UTF-8 byte of the gold answer of each item of a multiple-choice task: lower is better, and it moves
    where accuracy stands still."""
    results_url: str | None = None
    """lm-eval's own JSON of the results, with every sample beside it."""
    notes: tuple[str, ...] = ()
    """See `PerplexityScore`."""

    @property
    def bits_per_byte(self) -> float | None:
        """Mean over the items."""
        return sum(self.item_bits_per_byte) / len(self.item_bits_per_byte) if self.item_bits_per_byte else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementScore:
    """How far one model predicts what the dense model predicts, on one text."""

    unit: str
    """See `PerplexityScore`."""
    source: str
    protocol: str
    kl: float
    """KL(dense ‖ model), mean over predictions, in nats."""
    top1: float
    """Share of predictions with the same most likely token."""
    num_predictions: int
    notes: tuple[str, ...] = ()
    """See `PerplexityScore`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScore:
    """A user's own measure of one model."""

    unit: str
    """See `PerplexityScore`."""
    name: str
    """`module:function`."""
    value: float
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpeed:
    """Speed of generating from one shape of input; times in seconds, mean over the runs."""

    batch_size: int
    prompt_tokens: int
    output_tokens: int
    latency: float
    """Seconds of the whole generation."""
    latency_deviation: float
    """Standard deviation over the runs."""
    time_to_first_token: float
    """Prefill and the first token."""
    throughput: float
    """Generated tokens of the batch per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationPoint(GenerationSpeed):
    """Speed and memory of generating in our own process."""

    peak_memory_bytes: int
    """The weights, and the most that the GPU's allocator, or on CPU the process, held beyond what it held before the
    generation."""
    gpu_utilisation: float | None = None
    """Share of time with a kernel running, 0 to 1; None on CPU and without NVML."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a model costs in any shape of input."""

    weight_bytes: int
    kv_bytes_per_token: int
    """Bytes of the cache, for each token of each sequence, within the window of blocks that have one."""
    flops_per_token: float
    """Operations of one forward pass, attention to the past left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyPoint:
    """A model and the dense one at one shape of input."""

    dense: GenerationPoint
    """From the same turns."""
    model: GenerationPoint
    speed_up: float
    """Dense latency / latency, the median over the turns, so that what disturbs a run of one model does not count. The
    ratio of the mean latencies may differ."""
    ideal_speed_up: float | None
    """Dense time / (dense time less the share of what was removed); None where that is not known."""
    block_share: float
    """Share of the dense model's time that its blocks take, 0 to 1."""
    head_share: float
    """Share that its head takes; embeddings and the loop around the model take the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyScore:
    """What one model costs to run, measured in turns with the dense model in one process."""

    unit: str
    """Fingerprint of the unit; on which machine, the protocol says alone."""
    protocol: str
    """Device, dtype, threads, prompt, runs and options, in words."""
    points: tuple[EfficiencyPoint, ...]
    """By output length, then batch size; shapes that do not fit into memory are left out."""
    dense: Footprint
    model: Footprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingScore:
    """Speed of one model behind an inference server, measured in turns with a server of the dense model."""

    protocol: str
    """Server, its version, dtype, prompt and runs, in words."""
    points: tuple[GenerationSpeed, ...]
    """By output length, then batch size."""
    dense_points: tuple[GenerationSpeed, ...]
    """Speed of the dense model, from the same turns and in the same order."""
    speed_ups: tuple[float, ...]
    """For each point: dense latency / latency, the median over the turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingScore:
    """A score that could not be had."""

    unit: str
    """See `PerplexityScore`."""
    name: str
    """The unit in words: `perplexity on wiki @128 bos-first, report part`, `task piqa`."""
    cause: str
    is_bad_input: bool = False
    """Whether what was asked for cannot work, rather than that processes failed."""


Score = PerplexityScore | TaskScore | AgreementScore | MetricScore | EfficiencyScore


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalScores:
    """All scores of one model that one question asked for."""

    perplexity: tuple[PerplexityScore, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    agreement: tuple[AgreementScore, ...] = ()
    metrics: tuple[MetricScore, ...] = ()
    efficiency: EfficiencyScore | None = None
    missing: tuple[MissingScore, ...] = ()

    @classmethod
    def of(cls, scores: Iterable[Score | MissingScore]) -> "EvalScores":
        """By their kind, each kind in its order."""
        every = tuple(scores)
        return cls(
            perplexity=tuple(score for score in every if isinstance(score, PerplexityScore)),
            tasks=tuple(score for score in every if isinstance(score, TaskScore)),
            agreement=tuple(score for score in every if isinstance(score, AgreementScore)),
            metrics=tuple(score for score in every if isinstance(score, MetricScore)),
            efficiency=next((score for score in every if isinstance(score, EfficiencyScore)), None),
            missing=tuple(score for score in every if isinstance(score, MissingScore)),
        )

    @property
    def found(self) -> dict[str, Score]:
        """Every score by its unit."""
        speeds = (self.efficiency,) if self.efficiency else ()
        every: tuple[Score, ...] = (*self.perplexity, *self.tasks, *self.agreement, *self.metrics, *speeds)
        return {score.unit: score for score in every}

    @property
    def mean_nll(self) -> float:
        """Mean over the sources of their mean negative log-likelihoods, in nats per token; NaN where one is missing."""
        if self.missing or not self.perplexity:
            return math.nan
        return sum(score.mean_nll for score in self.perplexity) / len(self.perplexity)
