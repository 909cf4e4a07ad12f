"""What one stage hands to the next: frozen records with a JSON form.

A record says what was computed and how; where it lies is the store's business (`storage/store.py`).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
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
    """Keep some blocks of a model, in their order."""

    kept: tuple[int, ...]
    """Indices of the blocks that stay, ascending."""
    kind: Literal["blocks"] = "blocks"

    def changes(self, num_blocks: int) -> bool:
        """Whether a model of so many blocks loses any."""
        return self.kept != tuple(range(num_blocks))

    def removed(self, num_blocks: int) -> tuple[int, ...]:
        """Indices of the blocks that go, ascending."""
        return tuple(block for block in range(num_blocks) if block not in self.kept)

    def describe(self, num_blocks: int) -> str:
        """What was done, in words that follow the name of a model."""
        return f"without blocks {', '.join(map(str, self.removed(num_blocks)))}"

    def facts(self, num_blocks: int) -> dict[str, str]:
        """Columns of a table that say what was done, by name."""
        return {
            "kept_blocks": " ".join(map(str, self.kept)),
            "removed_blocks": " ".join(map(str, self.removed(num_blocks))),
        }

    def then(self, later: "BlocksTransform") -> "BlocksTransform":
        """Both as one, in this one's indices; `later` has those of the model that this one leaves."""
        return BlocksTransform(kept=tuple(self.kept[block] for block in later.kept))


Transform = BlocksTransform
"""What is done to a model's files when they are loaded. A further kind makes this a union, told apart by `kind`."""


def composed(first: tuple[Transform, ...], later: tuple[Transform, ...]) -> tuple[Transform, ...]:
    """Two lists of transforms as one, in the indices of the first; `later` has those of the model that it leaves."""
    by_kind = {transform.kind: transform for transform in first}
    for transform in later:
        before = by_kind.get(transform.kind)
        by_kind[transform.kind] = before.then(transform) if before else transform
    return tuple(by_kind[kind] for kind in sorted(by_kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a stored payload."""

    path: str
    """Relative to the payload's directory."""
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model: Hugging Face files, and the transforms under which they are loaded."""

    url: str
    """Directory of config.json, tokenizer and safetensors files."""
    fingerprint: str
    """Identity of the files: what produced them, or their hashes."""
    files: tuple[FileEntry, ...]
    num_blocks: int
    """Number of blocks in the files."""
    transforms: tuple[Transform, ...] = ()
    """At most one of each kind, by kind; their indices are those of the files. One that changes nothing is left out."""
    origin: tuple[Transform, ...] | None = ()
    """What was done to the dense model to make these files, in its indices; None where it is not known."""

    def view(self, transforms: Sequence[Transform]) -> "ModelRef":
        """The same files, loaded under `transforms`."""
        changing = [transform for transform in transforms if transform.changes(self.num_blocks)]
        return replace(self, transforms=tuple(sorted(changing, key=lambda transform: transform.kind)))

    def exported(self, *, url: str, fingerprint: str, files: tuple[FileEntry, ...]) -> "ModelRef":
        """The model of files that were written from what loads here."""
        return ModelRef(
            url=url, fingerprint=fingerprint, files=files, num_blocks=self.num_loaded_blocks, origin=self.shortening
        )

    @property
    def num_loaded_blocks(self) -> int:
        """Number of blocks that loading yields."""
        return next((len(t.kept) for t in self.transforms if t.kind == "blocks"), self.num_blocks)

    @property
    def shortening(self) -> tuple[Transform, ...] | None:
        """What makes the loaded model from the dense one, in the dense model's indices; None where it is not known."""
        return None if self.origin is None else composed(self.origin, self.transforms)

    @property
    def identity(self) -> dict[str, object]:
        """What a score of this model depends on; the place of the files is not part of it."""
        return {"files": self.fingerprint, "transforms": self.transforms}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a model is."""

    blocks: int
    parameters: int
    """Number of parameters; a tied head counts once."""
    nonzero_parameters: int
    num_bytes: int
    """Bytes of the weights as they are exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters of a model by block, from its files."""

    block_parameters: tuple[int, ...]
    """Number of parameters of each block."""
    other_parameters: int
    """Number of parameters outside the blocks: embeddings, final norm, an untied head."""
    bytes_per_parameter: int
    """Bytes of each weight as it is exported."""

    def without(self, removed: Collection[int]) -> Size:
        """The size of the model without the blocks `removed`."""
        kept = [number for block, number in enumerate(self.block_parameters) if block not in removed]
        parameters = self.other_parameters + sum(kept)
        return Size(
            blocks=len(kept),
            parameters=parameters,
            nonzero_parameters=parameters,
            num_bytes=parameters * self.bytes_per_parameter,
        )


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
    """What is done to the dense model. Labels that lead to the same transforms share one plan."""

    transforms: tuple[Transform, ...]
    """As in a view of the dense model: empty where nothing is removed."""
    labels: tuple[PlanLabel, ...]
    size: Size
    dense: Size
    """The size of the dense model."""

    @property
    def removed_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that go, ascending."""
        return next((t.removed(self.dense.blocks) for t in self.transforms if t.kind == "blocks"), ())

    @property
    def facts(self) -> dict[str, str]:
        """Columns of a table that say what was done, by name; those of kinds that were not used are absent."""
        return {name: text for t in self.transforms for name, text in t.facts(self.dense.blocks).items()}

    @property
    def block_ratio(self) -> float:
        """Removed blocks / all blocks."""
        return 1 - self.size.blocks / self.dense.blocks

    @property
    def parameter_ratio(self) -> float:
        """Removed parameters / all parameters."""
        return 1 - self.size.parameters / self.dense.parameters

    @property
    def name(self) -> str:
        """A short name for logs and tables, such as `ppl+taylor 20%`."""
        criteria = "+".join(dict.fromkeys(label.ranking for label in self.labels))
        ratios = "/".join(dict.fromkeys(f"{100 * label.ratio:.3g}%" for label in self.labels))
        return f"{criteria} {ratios}"


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
    """As in `PerplexityScore`."""
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
    """As in `PerplexityScore`."""

    @property
    def bits_per_byte(self) -> float | None:
        """Mean over the items."""
        return sum(self.item_bits_per_byte) / len(self.item_bits_per_byte) if self.item_bits_per_byte else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementScore:
    """How far one model predicts what the dense model predicts, on one text."""

    unit: str
    """As in `PerplexityScore`."""
    source: str
    protocol: str
    kl: float
    """KL(dense ‖ model), mean over predictions, in nats."""
    top1: float
    """Share of predictions with the same most likely token."""
    num_predictions: int
    notes: tuple[str, ...] = ()
    """As in `PerplexityScore`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScore:
    """A user's own measure of one model."""

    unit: str
    """As in `PerplexityScore`."""
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

    unit: str
    """As in `PerplexityScore`; on which machine, the protocol says alone."""
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
    ideal_speed_ups: tuple[float | None, ...]
    """For each point: dense time / (dense time less the share of what was removed); None where that is not known."""
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
    """As in `PerplexityScore`."""
    name: str
    """The unit in words: `perplexity on wiki @128 bos-first, report part`, `task piqa`."""
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
    def units(self) -> frozenset[str]:
        """Those that have a score."""
        return frozenset(
            (
                *(score.unit for score in self.perplexity),
                *(score.unit for score in self.tasks),
                *(score.unit for score in self.agreement),
                *(score.unit for score in self.metrics),
                *((self.efficiency.unit,) if self.efficiency else ()),
            )
        )

    @property
    def mean_nll(self) -> float:
        """Mean over the sources of their mean negative log-likelihoods, in nats per token; NaN where one is missing."""
        if self.missing or not self.perplexity:
            return math.nan
        return sum(score.mean_nll for score in self.perplexity) / len(self.perplexity)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """Adapters of a run; see `methods.lora.LoraOptions`."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """Loss of a distillation; see `methods.distill.DistillOptions`."""

    temperature: float
    hard_loss_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run: everything that changes the weights, but for the model and the data."""

    method: str
    """The row of `methods.METHODS` that says how it trains."""
    train_on: Literal["corpus", "instructions"]
    num_steps: int
    """Optimiser steps (count)."""
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
    options: dict[str, bool | int | float | str | tuple[str, ...] | None] = field(default_factory=dict)
    """The method's own, where they choose the weights that are trained."""

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
    seconds: float
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
    accelerator_seconds: float
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
    """A row of `methods.METHODS`."""
    recipes: tuple[Recipe, ...]
    """Training runs, each from the model of the one before; there is none where nothing is trained."""
    control: Literal["dense", "random"] | None = None
    """A comparison instead of a candidate: the unpruned model, or blocks drawn at random."""
    equal_seconds: bool = False
    """Its budget is the time that the reference method took, instead of its tokens."""

    @property
    def name(self) -> str:
        if not self.recipes:
            return f"{self.plan.name} untrained"
        last = self.recipes[-1]
        rates = "+".join(f"{recipe.learning_rate:g}" for recipe in self.recipes)
        on = " on instructions" if last.train_on == "instructions" else ""
        at = " at equal seconds" if self.equal_seconds else ""
        return f"{self.plan.name} {self.method}{on} lr {rates} seed {last.seed}{at}"

    @property
    def learning_rate(self) -> float | None:
        """At the peak of the last run; None where nothing is trained."""
        return self.recipes[-1].learning_rate if self.recipes else None

    @property
    def seed(self) -> int | None:
        """Seed of the last run; None where nothing is trained."""
        return self.recipes[-1].seed if self.recipes else None

    @property
    def train_on(self) -> str | None:
        """Data of the last run, corpus or instructions; None where nothing is trained."""
        return self.recipes[-1].train_on if self.recipes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A finished trial, measured with the selection texts."""

    fingerprint: str
    model: ModelRef
    """That of the last run; the plan's view where nothing was trained."""
    runs: tuple[RetrainedModel, ...]
    """What each training run handed on, in order."""
    before: EvalScores
    """The plan before retraining."""
    after: EvalScores
    seconds: float
    """Wall time of the trial's last attempt: scoring, start-up, training, export."""

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
    on_hub: bool
    """Whether that name is an id of the Hugging Face hub."""
    base_license: str | None
    """None where it is not known."""
    sources: tuple[SourceFacts, ...]
    dtype: str
    """Of the exported weights."""


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
    dense_size: Size
    dense_url: str
    dense_selection: EvalScores
    dense_report: EvalScores
    block_scores: tuple[BlockScores, ...]
    trials: tuple[ReportedTrial, ...]
    notes: tuple[str, ...]
    """Facts about the protocol that a reader must know, such as a text used for both selection and report."""
    unseen_units: tuple[str, ...]
    """Units of the report texts whose source was never trained on."""
    dense_fingerprint: str
    """Identity of the dense model's files."""
    versions: dict[str, str]
    """Versions of the libraries that set numbers."""
    provenance: Provenance
