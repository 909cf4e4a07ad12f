"""What one stage hands to the next: frozen records with a JSON form.

A record says what was computed and how; where it lies is the store's business (`storage/store.py`).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import pydantic_core
from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(record: object, *, indent: int | None = 2) -> str:
    """The JSON form of any record below. JSON has no number for NaN and infinity: they are strings, read as numbers."""
    return pydantic_core.to_json(record, indent=indent, inf_nan_mode="strings").decode()


def from_json(record_type: type[T], text: str | bytes) -> T:
    """Read a record back; raises `pydantic.ValidationError` where the text is not its JSON form."""
    return TypeAdapter(record_type).validate_json(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksTransform:
    """Keep some blocks of the dense model, in their order."""

    kept_blocks: tuple[int, ...]
    """Indices into the dense model's blocks, ascending."""
    kind: Literal["blocks"] = "blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a stored payload."""

    path: str
    """Relative to the payload's directory."""
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model: Hugging Face files, and the view of them to load."""

    url: str
    """Directory of config.json, tokenizer and safetensors files."""
    fingerprint: str
    """Identity of the files: what produced them, or their hashes."""
    files: tuple[FileEntry, ...]
    num_blocks: int
    """Blocks in the files."""
    transform: BlocksTransform | None = None

    def view(self, kept_blocks: tuple[int, ...]) -> "ModelRef":
        """The same files, loaded with only `kept_blocks`."""
        return replace(self, transform=BlocksTransform(kept_blocks=kept_blocks))

    @property
    def kept_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that loading yields."""
        return self.transform.kept_blocks if self.transform else tuple(range(self.num_blocks))

    @property
    def identity(self) -> dict[str, object]:
        """What a score of this model depends on; the place of the files is not part of it."""
        whole = self.kept_blocks == tuple(range(self.num_blocks))
        return {"files": self.fingerprint, "kept_blocks": None if whole else self.kept_blocks}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes of a model, from its files."""

    block_parameters: tuple[int, ...]
    """Parameters of each block."""
    other_parameters: int
    """Parameters outside the blocks: embeddings, final norm, an untied head."""

    def parameters(self, kept_blocks: tuple[int, ...]) -> int:
        """Parameters of the model with only `kept_blocks`."""
        return self.other_parameters + sum(self.block_parameters[block] for block in kept_blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDataset:
    """Token sequences of one source, in shards."""

    url: str
    """Directory of the shards."""
    fingerprint: str
    files: tuple[FileEntry, ...]
    """`tokens-*.npy`: arrays [sequences, sequence_length]; for instruction data also `spans-*.npy`, arrays
    [sequences, 2]: where the response begins and where it ends, the rest being padding."""
    num_sequences: int
    sequence_length: int
    num_documents: int
    notes: tuple[str, ...] = ()
    """What the user should know of it, such as how many rows could not be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMixture:
    """Data sets of one sequence length, mixed."""

    parts: tuple[TokenDataset, ...]
    weights: tuple[float, ...] | None = None
    """Share of the training stream from each part, summing to 1; None: every sequence is equally likely."""

    @property
    def identity(self) -> dict[str, object]:
        """What a model trained on it depends on."""
        return {"parts": [part.fingerprint for part in self.parts], "weights": self.weights}

    @property
    def num_sequences(self) -> int:
        return sum(part.num_sequences for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What the methods of an experiment train on."""

    corpus: TokenMixture | None
    """Where a method trains on it."""
    instructions: TokenMixture | None
    """Where a method trains on them."""
    validation: TokenMixture | None
    """Sequences of the selection texts, where something is trained and the texts fill any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How sure it is which blocks go when `count` of them are removed."""

    count: int
    removed: tuple[int, ...]
    """The blocks that go, ascending."""
    probabilities: tuple[float, ...]
    """Of each block, in model order: share of resampled calibration sets by which it would go."""

    @property
    def undecided(self) -> tuple[int, ...]:
        """Blocks whose side of the cut depends on the calibration text: they go in 5 % to 95 % of the resamples."""
        low, high = UNDECIDED
        return tuple(b for b, p in enumerate(self.probabilities) if low <= p <= high)


UNDECIDED = (0.05, 0.95)
RESAMPLES = 1000
"""Bootstrap samples of the calibration sequences behind each probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockScores:
    """How much each block matters by one criterion."""

    criterion: str
    scores: tuple[float | None, ...]
    """One per block, in model order; the lowest is removed first. None where the criterion never scores the block."""
    order: tuple[int, ...]
    """All blocks, least important first, before protection."""
    sets: tuple[tuple[int, ...], ...] | None = None
    """Blocks to remove, ascending, for each count where the criterion chooses them anew; they then win over `order`."""
    standard_errors: tuple[float | None, ...] | None
    """Of each score, where the criterion has one."""
    cuts: tuple[Cut, ...] | None = None
    """For each requested count, where the criterion has resamples to tell it from."""
    protected: tuple[int, ...]
    """Blocks that a plan never removes."""
    dense_perplexity: float | None
    """Perplexity of the dense model on the calibration set, where the criterion measures it."""
    tokens: int = 0
    """Calibration tokens read: sequences times their length."""
    protocol: str
    """Text, lengths, dtype and options behind the scores, in words."""
    fingerprint: str
    calibration: str | None = None
    """What tells the calibration text from others of the experiment, where a criterion reads several."""
    settings: str | None = None
    """What tells the criterion's settings from others of the experiment, where it is asked for with several."""

    @property
    def ranking(self) -> str:
        """The criterion, and what tells this ranking from others by it, such as `ppl (seed 5)`."""
        return _ranking_name(self.criterion, self.calibration, self.settings)

    def removed(self, count: int) -> tuple[int, ...]:
        """The `count` blocks that go, ascending."""
        return removed_blocks(self.order, self.sets, self.protected, count)


def removed_blocks(
    order: tuple[int, ...], sets: tuple[tuple[int, ...], ...] | None, protected: tuple[int, ...], count: int
) -> tuple[int, ...]:
    """The `count` blocks that go, ascending: the set of that size, else the first unprotected ones of the order.

    Protection wins: a protected block is passed over in an order, and criteria choose their sets around it.
    """
    for chosen in sets or ():
        if len(chosen) == count:
            return chosen
    return tuple(sorted([block for block in order if block not in protected][:count]))


def _ranking_name(criterion: str, calibration: str | None, settings: str | None) -> str:
    told_apart = ", ".join(part for part in (calibration, settings) if part)
    return f"{criterion} ({told_apart})" if told_apart else criterion


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLabel:
    """A point of the search space that led to a plan."""

    criterion: str
    ratio: float
    """Fraction of blocks asked for; `removed_blocks / num_blocks` where a count was asked for."""
    calibration: str | None = None
    """As in `BlockScores`."""
    settings: str | None = None
    """As in `BlockScores`."""

    @property
    def ranking(self) -> str:
        """`BlockScores.ranking` of the scores that led to the plan."""
        return _ranking_name(self.criterion, self.calibration, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """Which blocks stay. Labels that lead to the same blocks share one plan."""

    kept_blocks: tuple[int, ...]
    removed_blocks: tuple[int, ...]
    labels: tuple[PlanLabel, ...]
    block_ratio: float
    """Removed blocks / all blocks."""
    parameters: int
    parameter_ratio: float
    """Removed parameters / all parameters."""

    @property
    def name(self) -> str:
        """A short name for logs and tables, such as `ppl+taylor 20%`."""
        criteria = "+".join(dict.fromkeys(label.ranking for label in self.labels))
        ratios = "/".join(dict.fromkeys(f"{100 * label.ratio:.3g}%" for label in self.labels))
        return f"{criteria} {ratios}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityScore:
    """Perplexity of one model on one text under one protocol."""

    source: str
    protocol: str
    perplexity: float
    mean_nll: float
    """Nats per predicted token."""
    num_predictions: int
    documents: str = ""
    """Fingerprint of the text's documents: two texts may have one name. Empty where it is not recorded."""
    document_nll: tuple[float, ...] = ()
    """Summed negative log-likelihood of the predictions in each document, in nats, to 4 decimals; documents in their
    order in the text, those without a prediction left out."""
    document_predictions: tuple[int, ...] = ()
    """Predictions in each of these documents. Equal between models that share tokenizer and protocol."""
    notes: tuple[str, ...] = ()
    """How this measurement differed from what was asked for, such as smaller batches where memory was short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One model on one lm-eval task or group."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_items: int
    protocol: str
    higher_is_better: bool = True
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
    """As in `PerplexityScore`."""

    @property
    def bits_per_byte(self) -> float | None:
        """Mean over the items."""
        return sum(self.item_bits_per_byte) / len(self.item_bits_per_byte) if self.item_bits_per_byte else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementScore:
    """How far one model predicts what the dense model predicts, on one text."""

    source: str
    protocol: str
    kl: float
    """KL(dense ‖ model), mean over predictions, in nats."""
    top1: float
    """Share of predictions with the same most likely token."""
    num_predictions: int
    notes: tuple[str, ...] = ()
    """As in `PerplexityScore`."""
    documents: str = ""
    """Fingerprint of the text's documents; empty where it is not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScore:
    """A user's own measure of one model."""

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
    """Of the whole generation."""
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
class EfficiencyScore:
    """What one model costs to run, measured in turns with the dense model in one process."""

    protocol: str
    """Device, dtype, threads, prompt, runs and options, in words."""
    points: tuple[GenerationPoint, ...]
    """By output length, then batch size; shapes that do not fit into memory are left out."""
    dense_points: tuple[GenerationPoint, ...]
    """Of the dense model, from the same turns and in the same order."""
    weight_bytes: int
    dense_weight_bytes: int
    kv_bytes_per_token: int
    """Of the cache, for each token of each sequence, within the window of blocks that have one."""
    dense_kv_bytes_per_token: int
    flops_per_token: float
    """Of one forward pass, attention to the past left out."""
    dense_flops_per_token: float
    block_shares: tuple[float, ...]
    """For each point: share of the dense model's time that its blocks take, 0 to 1."""
    head_shares: tuple[float, ...]
    """The same of its head; embeddings and the loop around the model take the rest."""
    ideal_speed_ups: tuple[float, ...]
    """For each point: dense time / (dense time less the removed blocks' share of it)."""
    speed_ups: tuple[float, ...]
    """For each point, measured: dense latency / latency, the median over the turns, so that what disturbs a run of one
    model does not count. The ratio of the mean latencies may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingScore:
    """Speed of one model behind an inference server, measured in turns with a server of the dense model."""

    protocol: str
    """Server, its version, dtype, prompt and runs, in words."""
    points: tuple[GenerationSpeed, ...]
    """By output length, then batch size."""
    dense_points: tuple[GenerationSpeed, ...]
    """Of the dense model, from the same turns and in the same order."""
    speed_ups: tuple[float, ...]
    """For each point: dense latency / latency, the median over the turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingScore:
    """A score that could not be had."""

    unit: str
    """What was to be measured: `perplexity on wiki @128 bos-first, report part`, `task piqa`."""
    cause: str
    is_bad_input: bool = False
    """Whether what was asked for cannot work, rather than that processes failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalScores:
    """All scores of one model that one question asked for."""

    perplexity: tuple[PerplexityScore, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    agreement: tuple[AgreementScore, ...] = ()
    metrics: tuple[MetricScore, ...] = ()
    efficiency: EfficiencyScore | None = None
    missing: tuple[MissingScore, ...] = ()

    @property
    def mean_nll(self) -> float:
        """Mean over the sources of their mean negative log-likelihoods, in nats per token; NaN where one is missing."""
        if self.missing or not self.perplexity:
            return math.nan
        return sum(score.mean_nll for score in self.perplexity) / len(self.perplexity)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Adapters of a run; see `config.LoraConfig`."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """Loss of a distillation; see `config.DistillConfig`."""

    temperature: float
    hard_loss_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run: everything that changes the weights, but for the model and the data."""

    method: Literal["none", "cpt", "lora", "distill", "last_blocks"]
    train_on: Literal["corpus", "instructions"]
    num_steps: int
    """Optimiser steps; none of them leaves the model as it is."""
    global_batch_size: int
    """Sequences per optimiser step, over all workers."""
    sequence_length: int
    """Tokens; the longest where sequences differ."""
    seed: int
    learning_rate: float
    """At its peak."""
    weight_decay: float
    betas: tuple[float, float]
    max_gradient_norm: float
    schedule: Literal["wsd", "cosine", "linear"]
    warmup_steps: int
    decay_steps: int
    """Of wsd; the other schedules decay from the warm-up on."""
    final_learning_rate_ratio: float
    isolate_documents: bool = False
    lora: LoraOptions | None = None
    distill: DistillOptions | None = None
    tuned_blocks: int | None = None
    """Of last_blocks: how many."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step, padding included."""
        return self.global_batch_size * self.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens of the whole run, padding included."""
        return self.num_steps * self.tokens_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """One report of a training run."""

    step: int
    tokens: int
    """Since the start, without padding."""
    loss: float
    """What is minimised, per prediction, over the steps since the last report, in nats."""
    learning_rate: float
    tokens_per_second: float
    seconds: float = 0.0
    """Training time since the start, over all attempts."""
    gradient_norm: float | None = None
    """Before clipping, of the last step."""
    validation_loss: float | None = None
    """Cross-entropy on the validation sequences, in nats per prediction, where it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainedModel:
    """What one training run hands on."""

    model: ModelRef
    adapter: ModelRef | None = None
    """The adapters alone, in peft's format, where the run trained some; they are merged in `model`."""
    tokens: int
    """Without padding."""
    seconds: float
    """Wall time of the training loop and its checkpoints, over all attempts that resumed one another."""
    accelerator_seconds: float = 0.0
    """The same, times the number of GPUs, or of workers on CPU."""
    history: tuple[TrainingPoint, ...]
    skipped_steps: tuple[int, ...] = ()
    """Steps that were left out because their loss or gradient was not finite."""
    loss_spikes: tuple[int, ...] = ()
    """Steps whose loss stood far above those before."""
    first_validation_loss: float | None = None
    """Cross-entropy on the validation sequences before the first step, in nats per prediction; the last point of the
    history has that after the last one."""

    @property
    def last_validation_loss(self) -> float | None:
        return self.history[-1].validation_loss if self.history else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One trial: a plan and the way to retrain it."""

    fingerprint: str
    plan: PrunePlan
    method: str
    """none, cpt, lora, cpt_lora, distill or last_blocks."""
    recipes: tuple[Recipe, ...]
    """Training runs, each from the model of the one before."""
    control: Literal["dense", "random"] | None = None
    """A comparison instead of a candidate: the unpruned model, or blocks drawn at random."""
    equal_seconds: bool = False
    """Its budget is the time that the reference method took, instead of its tokens."""

    @property
    def name(self) -> str:
        last = self.recipes[-1]
        if self.method == "none":
            return f"{self.plan.name} untrained"
        rates = "+".join(f"{recipe.learning_rate:g}" for recipe in self.recipes)
        on = " on instructions" if last.train_on == "instructions" else ""
        at = " at equal seconds" if self.equal_seconds else ""
        return f"{self.plan.name} {self.method}{on} lr {rates} seed {last.seed}{at}"

    @property
    def learning_rate(self) -> float:
        """At the peak of the last run."""
        return self.recipes[-1].learning_rate

    @property
    def seed(self) -> int:
        return self.recipes[-1].seed

    @property
    def train_on(self) -> str:
        """corpus, or instructions where the last run used them."""
        return self.recipes[-1].train_on


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A finished trial, measured with the selection texts."""

    fingerprint: str
    runs: tuple[RetrainedModel, ...]
    """Of each training run, in order."""
    before: EvalScores
    """The plan before retraining."""
    after: EvalScores
    seconds: float
    """Wall time of the trial's last attempt: scoring, start-up, training, export."""

    @property
    def model(self) -> ModelRef:
        """The retrained model."""
        return self.runs[-1].model

    @property
    def tokens(self) -> int:
        """Trained on, over all runs."""
        return sum(run.tokens for run in self.runs)

    @property
    def training_seconds(self) -> float:
        """Over all runs, whoever made them."""
        return sum(run.seconds for run in self.runs)

    @property
    def accelerator_seconds(self) -> float:
        """Over all runs, whoever made them."""
        return sum(run.accelerator_seconds for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFailure:
    """Why a trial has no result. It does not count as done: the next run tries again."""

    fingerprint: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """One model with its scores, apart from any search."""

    model: str
    """As the user named it."""
    name: str | None = None
    """As its card does; None where it has none."""
    ref: ModelRef
    selection: EvalScores
    report: EvalScores
    serving: ServingScore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Data that models were made from."""

    name: str
    path: str
    """As the user named it."""
    role: Literal["calibration", "training", "instructions"]
    license: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where models come from, for those who get them."""

    base_model: str
    """As the user named it."""
    on_hub: bool = False
    """Whether that name is an id of the Hugging Face hub; False where it is not recorded."""
    base_license: str | None
    """None where it is not known."""
    sources: tuple[SourceFacts, ...]
    dtype: str | None = None
    """Of the exported weights; None where it is not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedTrial:
    """One row of the report: a trial with every score that was measured for it."""

    spec: TrialSpec
    result: TrialResult | None
    """None where the trial has not finished."""
    failure: str | None
    """The cause, where it failed."""
    before: EvalScores
    """Report scores of the plan before retraining; empty where not measured."""
    after: EvalScores
    """Report scores of the retrained model; empty where not measured."""
    running: bool = False
    """Begun and not ended, when the record was written."""
    stopped: bool = False
    """Begun by a driver that was stopped before the trial ended; the next one goes on with it."""
    experiments: tuple[str, ...] = ()
    """Experiments that have this trial, where a report shows several; empty: the one of the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Everything a report needs. Selection scores chose; report scores are what to quote."""

    name: str
    model: str
    """The dense model as the user named it."""
    num_blocks: int
    dense_parameters: int
    dense_url: str
    dense_selection: EvalScores
    dense_report: EvalScores
    block_scores: tuple[BlockScores, ...]
    trials: tuple[ReportedTrial, ...]
    notes: tuple[str, ...]
    """Facts about the protocol that a reader must know, such as a text used for both selection and report."""
    unseen_texts: tuple[str, ...] | None = None
    """Report texts whose source was never trained on, by name; None where that is not recorded."""
    dense_fingerprint: str | None = None
    """Identity of the dense model's files; None where that is not recorded."""
    versions: dict[str, str]
    """Versions of the libraries that set numbers."""
    provenance: Provenance | None = None
    """None where that is not recorded."""
