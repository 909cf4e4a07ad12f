"""What one stage hands to the next: frozen records with a JSON form.

A record says what was computed and how; where it lies is the store's business (`storage/store.py`).
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(record: object, *, indent: int | None = 2) -> str:
    """The JSON form of any record below."""
    return TypeAdapter(type(record)).dump_json(record, indent=indent).decode()


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
    """Token sequences of one length, packed into shards."""

    url: str
    """Directory of the shards."""
    fingerprint: str
    files: tuple[FileEntry, ...]
    """One `.npy` array [sequences, sequence_length] per shard."""
    num_sequences: int
    sequence_length: int
    num_documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How sure it is which blocks go when `count` of them are removed."""

    count: int
    removed: tuple[int, ...]
    """The blocks that go, ascending."""
    probabilities: tuple[float, ...]
    """Of each block, in model order: share of resampled calibration sets by which it would go."""
    open: tuple[int, ...] = ()
    """Blocks that a race left undecided when it ran out of text."""

    @property
    def undecided(self) -> tuple[int, ...]:
        """Blocks whose side of the cut depends on the calibration text: they go in 5 % to 95 % of the resamples, or a
        race left them open."""
        low, high = UNDECIDED
        return tuple(b for b, p in enumerate(self.probabilities) if low <= p <= high or b in self.open)


UNDECIDED = (0.05, 0.95)
RESAMPLES = 1000
"""Bootstrap samples of the calibration sequences behind each probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDraw:
    """The scores by another draw of calibration text."""

    seed: int
    scores: tuple[float | None, ...]
    order: tuple[int, ...]
    sets: tuple[tuple[int, ...], ...] | None = None


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
    draws: tuple[ScoreDraw, ...] = ()
    """Other draws of the calibration text, for comparison."""
    protected: tuple[int, ...]
    """Blocks that a plan never removes."""
    dense_perplexity: float | None
    """Perplexity of the dense model on the calibration set, where the criterion measures it."""
    sequences: tuple[int, ...] | None = None
    """Calibration sequences read for each block, where racing made them differ."""
    tokens: int = 0
    """Calibration tokens read: sequences times their length."""
    protocol: str
    """Text, lengths, dtype and options behind the scores, in words."""
    fingerprint: str

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLabel:
    """A point of the search space that led to a plan."""

    criterion: str
    ratio: float
    """Fraction of blocks asked for; `removed_blocks / num_blocks` where a count was asked for."""


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
        criteria = "+".join(dict.fromkeys(label.criterion for label in self.labels))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Accuracy of one model on one lm-eval task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_items: int
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalScores:
    """All scores of one model that one question asked for."""

    perplexity: tuple[PerplexityScore, ...] = ()
    tasks: tuple[TaskScore, ...] = ()

    @property
    def mean_nll(self) -> float:
        """Mean over the sources of their mean negative log-likelihoods, in nats per token."""
        return sum(score.mean_nll for score in self.perplexity) / len(self.perplexity)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPoint:
    """One report of a training run."""

    step: int
    tokens: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainedModel:
    """What retraining hands on."""

    model: ModelRef
    tokens: int
    seconds: float
    """Wall time of the training loop and its checkpoints, over all attempts that resumed one another."""
    history: tuple[TrainingPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One trial: a plan and the way to retrain it."""

    fingerprint: str
    plan: PrunePlan
    method: str
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.plan.name} {self.method} lr {self.learning_rate:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A finished trial, measured with the selection texts."""

    fingerprint: str
    retrained: RetrainedModel
    before: EvalScores
    """The plan before retraining."""
    after: EvalScores
    seconds: float
    """Wall time of the trial's last attempt: scoring, start-up, training, export."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFailure:
    """Why a trial has no result. It does not count as done: the next run tries again."""

    fingerprint: str
    cause: str


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
    versions: dict[str, str]
    """Versions of the libraries that set numbers."""
