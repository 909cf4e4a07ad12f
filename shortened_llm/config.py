"""The user's schema: what one YAML may say. Every default lives here, once, with its unit.

Text values expand `~` and environment variables, so that one file works on a laptop and in a submitted job.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from shortened_llm.errors import BadInputError


def _expand(value: object) -> object:
    if not isinstance(value, str):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value.removeprefix("file://")))
    if re.search(r"\$\{?\w", expanded):
        raise ValueError(f"{value!r} names an environment variable that is not set")
    return expanded


def _no_credentials(url: str) -> str:
    if re.match(r"^\w+://[^/]*@", url):
        raise ValueError("a URL must not hold credentials: set them in the environment or give the node a role")
    return url


def _distinct(values: tuple) -> tuple:
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice")
    return values


def _as_tuple(value: object) -> object:
    """One value stands for a list of one."""
    if value is None or isinstance(value, (list, tuple)):
        return value
    return (value,)


Url = Annotated[str, BeforeValidator(_expand), Field(min_length=1)]
Dtype = Literal["bfloat16", "float32"]
Criterion = Literal[
    "ppl", "taylor", "magnitude", "block_influence", "angular_span", "kl", "greedy_ppl", "last_n", "random"
]
TEXTLESS_CRITERIA: frozenset[Criterion] = frozenset({"magnitude", "last_n", "random"})
# Criteria whose score of a block is a mean over calibration sequences: only these have something to race for.
RACED_CRITERIA: tuple[Criterion, ...] = ("ppl", "kl", "block_influence")
Reduction = Literal["sum", "mean", "max"]
BosMode = Literal["first", "each", "none"]


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class StorageConfig(Section):
    """Where every result goes."""

    url: Url = "./results"
    """A directory or an fsspec URL such as s3://bucket/prefix. Credentials come from the environment or the node's
    role; AWS_ENDPOINT_URL names another S3 server."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        return _no_credentials(url)


class ModelConfig(Section):
    """The dense model."""

    path: Url
    """Hub id, directory, fsspec URL of a directory, or GGUF file."""
    revision: str | None = None
    """Hub branch, tag or commit; resolved to a commit when staged."""
    dtype: Dtype = "bfloat16"
    """Compute type of retraining and evaluation. Master weights of retraining are float32."""
    trust_remote_code: Literal[False] = False
    """Models that bring Python code of their own are not loaded."""

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        return _no_credentials(path)


class TextSource(Section):
    """Documents. A source that serves several purposes is split by document: 5 % selection, 5 % report, the rest for
    training and calibration."""

    path: Url
    """JSONL, Parquet or text file (a glob or URL too), or a hub data set id. In a text file, documents are separated
    by blank lines."""
    name: str | None = None
    """Configuration of a hub data set, such as wikitext-2-raw-v1."""
    revision: str | None = None
    """Revision of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    field: str = "text"
    """Column that holds the text. A column `input_ids` is taken as tokens instead where it exists."""

    @field_validator("path")
    @classmethod
    def _plain(cls, path: str) -> str:
        return _no_credentials(path)

    @property
    def label(self) -> str:
        """A short name for tables: the file's stem, or the data set's id."""
        is_file = re.search(r"\.(jsonl|json|parquet|txt)$", self.path)
        label = Path(self.path).stem if is_file else self.path
        return f"{label}/{self.name}" if self.name else label


class CalibrationConfig(TextSource):
    """Text that blocks are scored on."""

    num_sequences: int = Field(10, ge=1)
    """Sequences (count)."""
    sequence_length: int = Field(128, ge=2)
    """Length of each sequence (tokens)."""
    seed: int = Field(1234, ge=0)
    """Draws the documents."""
    draws: int = Field(1, ge=1, le=10)
    """Draws of calibration text (count), with seeds seed, seed + 1, ... Plans follow the first; the others show beside
    it how much the order owes to the text. Each costs as much as the first."""
    bos: Literal["auto", "each", "none"] = "auto"
    """each: a beginning-of-text token replaces the first token of every sequence; none: sequences as they are; auto:
    each for families that are lost without it (Gemma), else none. Rows of token ids are used as they are."""
    racing: bool = False
    """Read more sequences for blocks that are still near a requested cut, until each is decided or max_sequences is
    reached. For ppl, kl and block_influence."""
    max_sequences: int | None = Field(None, ge=2)
    """With racing: the most sequences (count); ten times num_sequences unless given."""

    @property
    def race_limit(self) -> int:
        """Sequences that racing reads at most."""
        return self.max_sequences or 10 * self.num_sequences

    @model_validator(mode="after")
    def _racing_has_room(self) -> "CalibrationConfig":
        if self.max_sequences is not None and not self.racing:
            raise ValueError(f"max_sequences is {self.max_sequences}, which only applies with racing: true")
        if self.racing and self.race_limit < self.num_sequences:
            raise ValueError(f"max_sequences is {self.max_sequences}, less than num_sequences {self.num_sequences}")
        if self.racing and self.draws > 1:
            raise ValueError(f"draws is {self.draws}, but a race has one draw, of as many sequences as it needs")
        if self.racing and self.num_sequences < 2:
            raise ValueError("racing compares sequences: num_sequences must be at least 2")
        return self


class TaylorConfig(Section):
    """Options of the Taylor criterion."""

    power: Literal[1, 2] = 1
    """Exponent of each weight's importance."""
    output_reduction: Reduction = "sum"
    """Over the output dimension of a weight."""
    block_reduction: Reduction = "sum"
    """Over the weights of a block."""


class MagnitudeConfig(TaylorConfig):
    """Options of the magnitude criterion."""


class RandomConfig(Section):
    """Options of the random control."""

    seed: int = Field(0, ge=0)
    """Draws the order."""


class ScoringConfig(Section):
    """How blocks are ranked."""

    criteria: Annotated[tuple[Criterion, ...], AfterValidator(_distinct)] = Field(
        ("ppl", "taylor", "magnitude"), min_length=1
    )
    """Criteria to rank by; an axis of the search. From calibration text: ppl, taylor, kl, block_influence,
    angular_span, greedy_ppl; from the weights: magnitude; controls: last_n, random."""
    protect_first: int = Field(4, ge=0)
    """Leading blocks that are never removed (count)."""
    protect_last: int = Field(2, ge=0)
    """Trailing blocks that are never removed (count)."""
    dtype: Dtype = "float32"
    """Compute type of scoring. Scores at the cut often differ by less than a bfloat16 rounding."""
    taylor: TaylorConfig = TaylorConfig()
    magnitude: MagnitudeConfig = MagnitudeConfig()
    random: RandomConfig = RandomConfig()

    @model_validator(mode="after")
    def _options_apply(self) -> "ScoringConfig":
        for name in ("taylor", "magnitude", "random"):
            if name in self.model_fields_set and name not in self.criteria:
                raise ValueError(
                    f"options of {name} are given, but criteria is {list(self.criteria)}; add {name!r} or drop them"
                )
        return self


Ratio = Annotated[float, Field(gt=0, lt=1)]


class SearchSection(Section):
    """What Ray Tune tries."""

    ratios: Annotated[tuple[Ratio, ...], AfterValidator(_distinct)] = ()
    """Fractions of blocks to remove, each rounded half up to whole blocks; an axis of the search."""
    removed_blocks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_distinct)] = ()
    """Numbers of blocks to remove (count); the exact alternative to ratios."""
    max_concurrent_trials: int = Field(1, ge=1)
    """Trials at a time. Set it to (GPUs for training) // (GPUs per trial)."""
    max_failures: int = Field(2, ge=0)
    """Restarts of a trial's worker group, from its last checkpoint, before the trial fails (count)."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "SearchSection":
        if not self.ratios and not self.removed_blocks:
            raise ValueError("give ratios, such as [0.2, 0.4], or removed_blocks, such as [6, 12]")
        return self


class CptConfig(Section):
    """Continued pretraining of all weights with AdamW."""

    learning_rate: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_as_tuple), AfterValidator(_distinct)
    ] = Field((1e-4,), min_length=1)
    """Peak learning rate; a list is an axis of the search."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's decoupled weight decay, on weights with two or more dimensions."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the tokens with a linearly rising learning rate; after it the rate follows a cosine."""
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end / peak learning rate."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""


class RetrainingConfig(Section):
    """How a pruned model recovers."""

    methods: tuple[Literal["cpt"], ...] = Field(("cpt",), min_length=1)
    """cpt: continued pretraining. An axis of the search."""
    data: Annotated[tuple[TextSource, ...], BeforeValidator(_as_tuple)] = Field(min_length=1)
    """Text to train on: one source, or a list whose documents are mixed."""
    tokens: int = Field(ge=1)
    """Training budget of a trial (tokens)."""
    sequence_length: int = Field(2048, ge=2)
    """Length of a training sequence (tokens). Documents are packed, an end-of-text token behind each."""
    global_batch_size: int = Field(512, ge=1)
    """Sequences per optimiser step, over all workers."""
    micro_batch_size: int = Field(4, ge=1)
    """Sequences per worker and forward pass. No result depends on it, beyond rounding."""
    seed: int = Field(0, ge=0)
    """Order of the training sequences."""
    checkpoint_tokens: int | None = Field(None, ge=1)
    """Distance between checkpoints (tokens); a third of the budget unless given. At most this much work is lost."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    cpt: CptConfig = CptConfig()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.global_batch_size * self.sequence_length

    @property
    def num_steps(self) -> int:
        """Optimiser steps of a trial: the budget, rounded down to whole steps."""
        return self.tokens // self.tokens_per_step

    @property
    def checkpoint_steps(self) -> int:
        """Optimiser steps between checkpoints."""
        tokens = self.checkpoint_tokens or self.tokens // 3
        return max(1, tokens // self.tokens_per_step)

    @model_validator(mode="after")
    def _budget_covers_a_step(self) -> "RetrainingConfig":
        if self.num_steps < 1:
            raise ValueError(
                f"tokens is {self.tokens:,}, but one optimiser step takes {self.tokens_per_step:,} "
                f"(global_batch_size {self.global_batch_size} x sequence_length {self.sequence_length})"
            )
        return self


class PerplexitySource(TextSource):
    """A text and the protocol of its perplexity."""

    split: str = "test"
    """Split of a hub data set."""
    segment_length: int = Field(128, ge=2)
    """Length of a segment (tokens); documents are joined by a blank line, the remainder is dropped."""
    bos: BosMode = "first"
    """first: one beginning-of-text token at the very start; each: one more before every segment; none."""
    max_tokens: int | None = Field(None, ge=2)
    """Read at most this many tokens from the start of the text; all unless given."""

    @model_validator(mode="after")
    def _limit_covers_a_segment(self) -> "PerplexitySource":
        if self.max_tokens is not None and self.max_tokens < self.segment_length:
            raise ValueError(f"max_tokens is {self.max_tokens}, less than one segment of {self.segment_length}")
        return self


class SelectionConfig(Section):
    """Scores that steer the search and choose the best of each size."""

    perplexity: Annotated[tuple[PerplexitySource, ...], BeforeValidator(_as_tuple)] = Field(min_length=1)
    """Texts; the search minimises the mean of their log-perplexities."""


class ReportConfig(Section):
    """Scores measured once, after the search, for quoting."""

    perplexity: Annotated[tuple[PerplexitySource, ...], BeforeValidator(_as_tuple)] = ()
    """Texts, measured for every model; at least one should never be trained on."""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks, measured for the dense model and the best model of each size."""


class EvaluationConfig(Section):
    """How models are scored."""

    selection: SelectionConfig
    report: ReportConfig = ReportConfig()
    task_directory: Annotated[str | None, BeforeValidator(_expand)] = None
    """Directory of your own lm-eval task files."""
    task_limit: int | None = Field(None, ge=1)
    """Items per task; all unless given. Fewer items rank nothing: 100 have a standard error of 4 to 5 points."""
    batch_size: int = Field(8, ge=1)
    """Segments or task requests per forward pass."""


class ResourcesConfig(Section):
    """Machines. Nothing here changes a number in the report."""

    workers: int = Field(1, ge=1)
    """Training processes of one trial."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPUs that Ray reserves for each training process."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of each training process: 0 trains on CPU."""
    evaluators: int = Field(1, ge=1)
    """Evaluation processes, at most; started on demand, ended when idle."""
    cpus_per_evaluator: float = Field(0.5, gt=0)
    """CPUs that Ray reserves for each evaluation process."""
    gpus_per_evaluator: float = Field(0, ge=0)
    """GPUs (or a fraction) of each evaluation process."""
    cpus_per_scorer: float = Field(1, gt=0)
    """CPUs that Ray reserves for each scoring task."""
    gpus_per_scorer: float = Field(0, ge=0)
    """GPUs (or a fraction) of each scoring task."""
    scoring_shards: int = Field(1, ge=1)
    """Tasks among which the calibration sequences of forward-only criteria are cut (count)."""
    scoring_memory_gib: float | None = Field(None, gt=0)
    """Memory of a scoring task for hidden states (GiB): what does not fit is walked in several passes over the
    weights. Half of the free memory of its device unless given."""
    node_wait_seconds: float = Field(1800, gt=0)
    """How long a trial waits for its nodes to start (seconds)."""


TRIAL_DRIVER_CPUS = 0.1
"""CPUs that Ray reserves for the process that drives a trial, beside its workers; Tune refuses zero."""

EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class SearchConfig(Section):
    """One experiment."""

    experiment: str
    """Name of the experiment: letters, digits, - and _."""
    storage: StorageConfig = StorageConfig()
    model: ModelConfig
    calibration: CalibrationConfig
    scoring: ScoringConfig = ScoringConfig()
    search: SearchSection
    retraining: RetrainingConfig
    evaluation: EvaluationConfig
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("experiment")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not EXPERIMENT_NAME.fullmatch(name):
            raise ValueError("a name has 1 to 100 letters, digits, - and _, and starts with a letter or digit")
        return name

    @model_validator(mode="after")
    def _draws_apply(self) -> "SearchConfig":
        if self.calibration.draws > 1 and not set(self.scoring.criteria) - TEXTLESS_CRITERIA:
            raise ValueError(
                f"calibration.draws is {self.calibration.draws}, but scoring.criteria is "
                f"{list(self.scoring.criteria)}, which read no text"
            )
        return self

    @model_validator(mode="after")
    def _racing_applies(self) -> "SearchConfig":
        if self.calibration.racing and not set(self.scoring.criteria) & set(RACED_CRITERIA):
            raise ValueError(
                f"calibration.racing is true, but scoring.criteria is {list(self.scoring.criteria)}; "
                f"racing applies to {', '.join(RACED_CRITERIA)}"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "SearchConfig":
        batch, workers = self.retraining.global_batch_size, self.resources.workers
        if batch % workers:
            raise ValueError(
                f"retraining.global_batch_size is {batch}, which resources.workers {workers} does not divide"
            )
        return self


# Keys that change where or how fast an experiment runs, never a number in its report.
PLACEMENT_KEYS = (
    "storage.url",
    "search.max_concurrent_trials",
    "search.max_failures",
    "retraining.checkpoint_tokens",
    "retraining.micro_batch_size",
    "evaluation.batch_size",
    "retraining.activation_checkpointing",
)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed_keys(stored: Mapping[str, object], config: SearchConfig) -> dict[str, tuple[object, object]]:
    """Keys whose values differ between a stored configuration (JSON form) and `config`: `{key: (stored, new)}`.

    Keys that only say where or how fast an experiment runs are left out.
    """
    with contextlib.suppress(ValidationError):  # A field that did not exist when it was stored has its default.
        stored = SearchConfig.model_validate(stored).model_dump(mode="json")
    old, new = flatten(stored), flatten(config.model_dump(mode="json"))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith("resources.") and key not in PLACEMENT_KEYS
    }


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the section at `location`."""
    section: type[BaseModel] = SearchConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if section := _section_of(argument):
            return section
    return None


def describe_errors(error: ValidationError) -> str:
    """One line per fault: the field, the value, what is allowed."""
    lines = []
    faults = error.errors()
    for fault in faults:
        location = fault["loc"]
        if any(other["loc"][: len(location)] == location for other in faults if len(other["loc"]) > len(location)):
            continue  # A fault of the parts explains the fault of the whole.
        name = ".".join(str(part) for part in location) or "config"
        if fault["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            lines.append(f"{name}: unknown key; {hint}")
        elif fault["type"] == "missing":
            lines.append(f"{name}: required")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            hidden = isinstance(fault["input"], Mapping) or "credentials" in message
            value = "" if hidden else f" (is {fault['input']!r})"
            lines.append(f"{name}: {message[:1].lower() + message[1:]}{value}")
    return "\n".join(lines)


def parse_config(values: Mapping[str, object]) -> SearchConfig:
    """Check `values`; raises `BadInputError` with one line per fault."""
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        raise BadInputError(describe_errors(error)) from None
