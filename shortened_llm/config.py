"""The user's schema: what one YAML may say. Every default lives here, once, with its unit.

Text values expand `~` and environment variables, so that one file works on a laptop and in a submitted job.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from shortened_llm.credentials import CREDENTIALS_REFUSED, hidden, holds_credentials
from shortened_llm.criteria import CRITERIA, reads_text
from shortened_llm.criteria.criterion import CriterionOptions
from shortened_llm.errors import BadInputError
from shortened_llm.fields import Section, as_tuple, distinct
from shortened_llm.methods import METHODS
from shortened_llm.methods.method import Chain, Method, OptimizerOptions, Run, corpus_steps
from shortened_llm.records import LoraOptions


def _expand(value: object) -> object:
    if not isinstance(value, str):
        return value
    _no_credentials(value)  # before a message repeats it
    expanded = os.path.expanduser(os.path.expandvars(value.removeprefix("file://")))
    if re.search(r"\$\{?\w", expanded):
        raise ValueError(f"{value!r} names an environment variable that is not set")
    return expanded


def _no_credentials(url: str) -> str:
    if holds_credentials(url):
        raise ValueError(CREDENTIALS_REFUSED)
    return url


T = TypeVar("T")
TOTAL, BY_RATIO = "total", "by ratio"
"""Forms of retraining.tokens, which pydantic adds to the field's name."""
ONE, SEVERAL = "one", "several"
"""Forms of a section that may be a list, which pydantic adds to the section's name."""
FORMS = (TOTAL, BY_RATIO, ONE, SEVERAL)


def _alone(value: object) -> object:
    """A list of one stands for its entry."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[tuple[T, ...], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, (list, tuple)) else ONE),
    BeforeValidator(_alone),
]
"""One entry, or a list of them: an axis of the search."""


THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def _as_count(value: object) -> object:
    """`8k`, `1.5M`, `2B` and `2e6` as whole numbers."""
    if not isinstance(value, str):
        return value
    written = re.fullmatch(r"(?P<number>\d[\d_]*(\.\d+)?(e\+?\d+)?) ?(?P<unit>[kMB]?)", value.strip())
    count = written and Decimal(written["number"].replace("_", "")) * THOUSANDS[written["unit"]]
    if not count or count != int(count):
        raise ValueError("give a whole number such as 2000000, or 2M; k, M and B are thousands, millions, billions")
    return int(count)


Tokens = Annotated[int, BeforeValidator(_as_count), Field(ge=1)]
"""A number of tokens, which may be written as `8k`, `1.5M` or `2B`."""
Url = Annotated[str, BeforeValidator(_expand), Field(min_length=1), AfterValidator(_no_credentials)]
Dtype = Literal["bfloat16", "float32"]
BosMode = Literal["first", "each", "none"]


class StorageConfig(Section):
    """Where every result goes."""

    url: Url = "./results"
    """A directory or an fsspec URL such as s3://bucket/prefix. Credentials come from the environment or the node's
    role; AWS_ENDPOINT_URL names another S3 server."""
    outage_seconds: float = Field(300, ge=10, le=86400)
    """How long a job, all its processes together, waits for a storage that does not answer. After that it stops with
    exit code 1; the same command goes on later."""


class ModelConfig(Section):
    """The dense model."""

    path: Url
    """Hub id, directory, fsspec URL of a directory, or GGUF file."""
    revision: str | None = None
    """Hub branch, tag or commit; resolved to a commit when staged."""
    dtype: Dtype = "bfloat16"
    """Compute type of retraining and evaluation. Master weights of retraining are float32."""
    export_dtype: Dtype | None = None
    """Type of the weights that are written; unless given, the compute type, whatever that of the model's files."""
    trust_remote_code: Literal[False] = False
    """Models that bring Python code of their own are not loaded."""
    license: str | None = None
    """Licence of the model, such as apache-2.0, to be stated with every model made from it; read from its model card
    unless given."""

    @property
    def exported_dtype(self) -> Dtype:
        """Type of the weights that are written."""
        return self.export_dtype or self.dtype


class DataSource(Section):
    """Rows of files, or of a hub data set."""

    path: Url
    """JSONL or Parquet file (a glob or URL too), or a hub data set id."""
    name: str | None = None
    """Configuration of a hub data set, such as wikitext-2-raw-v1."""
    revision: str | None = None
    """Revision of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    license: str | None = None
    """Licence of the data, such as cc-by-nc-4.0, to be stated with every model trained on it."""
    max_bad_rows: float = Field(0.01, ge=0, lt=1)
    """Share of the rows that may be unusable: without the column, of another type, damaged. They are left out, and
    counted in log and report; a source with more of them is refused."""


class TextSource(DataSource):
    """Documents. A source that serves several purposes is split by document: 5 % selection, 5 % report, the rest for
    training and calibration."""

    path: Url
    """JSONL, Parquet or text file (a glob or URL too), or a hub data set id. In a text file, documents are separated
    by blank lines."""
    field: str = "text"
    """Column that holds the text. A column `input_ids` is taken as tokens instead where it exists."""

    @property
    def label(self) -> str:
        """A short name for tables: the file's stem, or the data set's id."""
        is_file = re.search(r"\.(jsonl|ndjson|json|parquet|txt)(\.(gz|zst|xz|bz2))?$", self.path)
        label = Path(self.path).name[: -len(is_file[0])] if is_file else self.path
        return f"{label}/{self.name}" if self.name else label


class CalibrationConfig(TextSource):
    """Text that blocks are scored on."""

    num_sequences: int = Field(10, ge=1)
    """Sequences (count)."""
    sequence_length: int = Field(128, ge=2)
    """Length of each sequence (tokens)."""
    seed: int = Field(1234, ge=0)
    """Draws the documents; rows of token ids are taken in their order."""
    bos: Literal["auto", "each", "none"] = "auto"
    """each: a beginning-of-text token replaces the first token of every sequence; none: sequences as they are; auto:
    each for families that are lost without it (Gemma), else none. Rows of token ids are used as they are."""


def _known_criterion(name: str) -> str:
    if name not in CRITERIA:
        raise ValueError(f"should be one of {', '.join(map(repr, CRITERIA))}")
    return name


def _listed_criteria() -> str:
    """The criteria by what they are measured on."""
    text = [name for name, row in CRITERIA.items() if row.reads_text]
    weights = [name for name, row in CRITERIA.items() if row.measured and not row.reads_text]
    controls = [name for name, row in CRITERIA.items() if not row.measured]
    return (
        f"From calibration text: {', '.join(text)}; from the weights: {', '.join(weights)}; controls: "
        f"{', '.join(controls)}."
    )


class _BlockEntry(Section):
    """Whole blocks, ranked by criteria. Each criterion's options stand under its name."""

    unit: Literal["block"] = "block"
    """What is removed."""
    criteria: Annotated[
        tuple[Annotated[str, AfterValidator(_known_criterion)], ...],
        BeforeValidator(as_tuple),
        AfterValidator(distinct),
    ] = Field(
        ("ppl", "taylor", "magnitude"),
        min_length=1,
        description=f"Criteria to rank by; an axis of the search. {_listed_criteria()}",
    )
    protect_first: int = Field(4, ge=0)
    """Leading blocks that are never removed (count)."""
    protect_last: int = Field(2, ge=0)
    """Trailing blocks that are never removed (count)."""
    dtype: Dtype = "float32"
    """Compute type of scoring. Scores at the cut often differ by less than a bfloat16 rounding."""

    def options(self, criterion: str) -> CriterionOptions:
        """What the user set of a criterion, and the defaults of the rest."""
        options: CriterionOptions = getattr(self, criterion)
        return options

    def settings(self, criterion: str) -> dict[str, object]:
        """All that the removal by one criterion depends on, besides the model and the text."""
        own = ("protect_first", "protect_last", "dtype")
        return {name: getattr(self, name) for name in own} | self.options(criterion).model_dump()

    @model_validator(mode="after")
    def _options_apply(self) -> "_BlockEntry":
        for name in CRITERIA:
            # A search may have the control `random` without the criterion: see `SearchConfig`.
            if name in self.model_fields_set and name not in self.criteria and name != "random":
                raise ValueError(
                    f"options of {name} are given, but criteria is {list(self.criteria)}; add {name!r} or drop them"
                )
        return self


if TYPE_CHECKING:
    BlockPruning = _BlockEntry
else:
    BlockPruning = create_model(
        "BlockPruning",
        __base__=_BlockEntry,
        __doc__=_BlockEntry.__doc__,
        **{
            name: (row.options, Field(row.options(), description=" ".join(row.options.__doc__.split())))
            for name, row in CRITERIA.items()
        },
    )


Ratio = Annotated[float, Field(gt=0, lt=1)]


Control = Literal["dense", "random"]


class SearchSection(Section):
    """What Ray Tune tries."""

    ratios: Annotated[tuple[Ratio, ...], AfterValidator(distinct)] = ()
    """Fractions to remove, each rounded half up to whole blocks; an axis of the search."""
    of: Literal["blocks", "parameters", "bytes"] = "blocks"
    """What a ratio is a fraction of. Of parameters or bytes, as many blocks go as come nearest to it."""
    removed_blocks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(distinct)] = ()
    """Numbers of blocks to remove (count); the exact alternative to ratios."""
    controls: Annotated[tuple[Control, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = ()
    """Comparisons that tell what pruning by scores is worth, each with continued pretraining on the same tokens.
    dense: the unpruned model; random: blocks drawn with pruning.random.seed, at every ratio."""
    equal_seconds: bool = False
    """After the search, each method once more with the training time of continued pretraining instead of its tokens."""
    max_concurrent_trials: int = Field(1, ge=1)
    """Trials at a time. Set it to (GPUs for training) // (GPUs per trial)."""
    max_failures: int = Field(2, ge=0)
    """Restarts of a trial's worker group, from its last checkpoint, before the trial fails (count)."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "SearchSection":
        if not self.ratios and not self.removed_blocks:
            raise ValueError("give ratios, such as [0.2, 0.4], or removed_blocks, such as [6, 12]")
        return self


class InstructionsConfig(DataSource):
    """Pairs of a prompt and a response; the loss is on the response alone."""

    template: Literal["alpaca", "chat"] = "alpaca"
    """alpaca: the template of Stanford Alpaca; chat: the tokenizer's own chat template."""
    instruction_field: str = "instruction"
    """Column of the instruction."""
    input_field: str = "input"
    """Column of further input to an instruction; it may be empty or absent."""
    response_field: str = "output"
    """Column of the response."""
    max_length: int = Field(256, ge=8)
    """Longer pairs are cut at this length (tokens)."""
    global_batch_size: int = Field(64, ge=1)
    """Pairs per optimiser step, over all workers."""
    epochs: float = Field(2.0, gt=0)
    """Passes over the pairs; a fraction is allowed."""


class TrainingSource(TextSource):
    """Documents to train on."""

    weight: float | None = Field(None, gt=0)
    """Share of the training sequences from this source, relative to the other weights; by its size unless given."""


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"should be one of {', '.join(map(repr, METHODS))}")
    return name


MethodName = Annotated[str, AfterValidator(_known_method)]
Seed = Annotated[int, Field(ge=0)]


class _Retraining(Section):
    """How a pruned model recovers."""

    preset: Literal["paper", "short"] = "paper"
    """Defaults of all methods. paper: as published, where it is; short: for budgets below a million tokens, with higher
    learning rates and a longer warm-up."""
    methods: Annotated[tuple[MethodName, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = Field(
        ("cpt",),
        min_length=1,
        description="; ".join(f"{name}: {row.summary}" for name, row in METHODS.items()) + ". An axis of the search.",
    )
    data: Annotated[tuple[TrainingSource, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    """Text to train on: one source, or a list whose sequences are mixed."""
    instructions: InstructionsConfig | None = None
    """Instruction data, for lora.train_on."""
    corpus_tokens: Tokens | None = None
    """Tokens of the corpus that are packed, at most; the largest budget unless given. Experiments see the same order of
    sequences, and a longer run can continue a shorter one, only where it is the same."""
    tokens: Annotated[
        Annotated[Tokens, Tag(TOTAL)] | Annotated[dict[Annotated[float, Field(ge=0, lt=1)], Tokens], Tag(BY_RATIO)],
        Discriminator(lambda value: BY_RATIO if isinstance(value, Mapping) else TOTAL),
    ]
    """Training budget of a trial (tokens), or one for each of search.ratios: {0.2: 20_000, 0.4: 40_000}."""
    sequence_length: int = Field(2048, ge=2)
    """Length of a training sequence (tokens). Documents are packed, an end-of-text token behind each."""
    isolate_documents: bool = False
    """Packed documents do not attend to one another."""
    global_batch_size: int = Field(512, ge=1)
    """Sequences per optimiser step, over all workers."""
    micro_batch_size: int = Field(4, ge=1)
    """Sequences per worker and forward pass. No result depends on it, beyond rounding, but for dropout's masks."""
    seed: Annotated[tuple[Seed, ...], BeforeValidator(as_tuple), AfterValidator(distinct)] = Field((0,), min_length=1)
    """Order of the training sequences, adapters' first weights and dropout; a list is an axis of the search."""
    validation_sequences: int = Field(16, ge=0)
    """Sequences of the selection texts whose loss is measured with each checkpoint and at the end (count)."""
    checkpoint_tokens: Tokens | None = None
    """Distance between checkpoints (tokens); a third of the budget unless given. At most this much work is lost."""
    keep_stable_checkpoint: bool = False
    """With wsd: keep the weights and optimiser of the moment before the decay, 12 bytes for each trained parameter; a
    run with more tokens continues from there."""
    max_skipped_steps: int = Field(10, ge=1)
    """A step whose loss or gradient is not finite is skipped; after this many in a row the trial fails (count)."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile each block with torch.compile."""
    cpu_offload: bool = False
    """Keep parameters and optimiser state in CPU memory between uses; for GPUs."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        for name, row in METHODS.items():
            defaults, given = row.presets.get(str(values.get("preset")), {}), values.get(name, {})
            if defaults and isinstance(given, Mapping):
                filled[name] = {**defaults, **given}
        return filled

    def options(self, method: str) -> Any:
        """The options of a method: what the user set, and the defaults of the rest."""
        return getattr(self, method)

    def chains(self, method: str) -> tuple[Chain, ...]:
        """The chains of training runs that a method stands for."""
        options = {name: self.options(name) for name, row in METHODS.items() if row.options}
        return tuple(METHODS[method].chains(options))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step on the corpus."""
        return self.global_batch_size * self.sequence_length

    @property
    def budgets(self) -> tuple[int, ...]:
        """Distinct training budgets (tokens), ascending."""
        return tuple(sorted(set(self.tokens.values()))) if isinstance(self.tokens, dict) else (self.tokens,)

    def budget(self, ratio: float) -> int:
        """Training budget (tokens) at a ratio of the search."""
        return self.tokens[ratio] if isinstance(self.tokens, dict) else self.tokens

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run of every method, one for each kind of data that it trains on."""
        return tuple(run for method in self.methods for chain in self.chains(method) for run in chain)

    @property
    def uses_corpus(self) -> bool:
        """Whether any method reads `data`."""
        return any(run.train_on == "corpus" for run in self.runs)

    @property
    def uses_instructions(self) -> bool:
        """Whether any method reads `instructions`."""
        return any(run.train_on == "instructions" for run in self.runs)

    @property
    def adapters(self) -> tuple[LoraOptions, ...]:
        """The adapters that methods train."""
        rows = {run.method: METHODS[run.method].adapters for run in self.runs}
        return tuple(adapters(self.options(name)) for name, adapters in rows.items() if adapters)

    @property
    def drops_out(self) -> bool:
        """Whether any method trains with a dropout."""
        return any(adapters.dropout > 0 for adapters in self.adapters)

    @model_validator(mode="after")
    def _budget_covers_a_step(self) -> "_Retraining":
        for budget in self.budgets if self.uses_corpus else ():
            if budget < self.tokens_per_step:
                raise ValueError(
                    f"tokens is {budget:,}, but one optimiser step takes {self.tokens_per_step:,} "
                    f"(global_batch_size {self.global_batch_size} x sequence_length {self.sequence_length})"
                )
            steps = budget // self.tokens_per_step
            for method, chain in ((name, chain) for name in self.methods for chain in self.chains(name)):
                for run, own in zip(chain, corpus_steps(chain, steps), strict=True):
                    if run.train_on == "corpus" and not own:
                        raise ValueError(
                            f"{method}: its {run.method} run has a share of {run.share:g}, none of {steps} optimiser "
                            "steps; raise tokens or change the share"
                        )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> "_Retraining":
        for name in METHODS:
            recipe = getattr(self, name, None)
            if (
                isinstance(recipe, OptimizerOptions) and recipe.schedule == "wsd" and recipe.warmup_steps is None
                and recipe.warmup_ratio + recipe.decay_ratio > 1 + 1e-9
            ):  # fmt: skip
                raise ValueError(
                    f"{name}: warmup_ratio {recipe.warmup_ratio:g} and decay_ratio {recipe.decay_ratio:g} are more "
                    "than the whole run together"
                )
        return self

    @model_validator(mode="after")
    def _all_sources_have_weights(self) -> "_Retraining":
        without = [index for index, source in enumerate(self.data) if source.weight is None]
        if 0 < len(without) < len(self.data):
            index = without[0]
            raise ValueError(
                f"data.{index}.weight: {self.data[index].path!r} has none, but other sources have; give all of them a "
                "weight, or none"
            )
        return self

    @model_validator(mode="after")
    def _instructions_are_given(self) -> "_Retraining":
        if self.uses_instructions and self.instructions is None:
            (name, *_) = [run.method for run in self.runs if run.train_on == "instructions"]
            raise ValueError(
                f"{name} trains on instructions, but instructions is not given; name instruction data, such as "
                "{path: alpaca.json}"
            )
        return self


def retraining_section(methods: Mapping[str, Method]) -> Any:
    """The section `retraining` with a section for the options of each method."""
    sections: dict[str, Any] = {
        name: (row.options, Field(row.options(), description=" ".join((row.options.__doc__ or "").split())))
        for name, row in methods.items()
        if row.options is not None
    }
    return create_model("RetrainingConfig", __base__=_Retraining, __doc__=_Retraining.__doc__, **sections)


if TYPE_CHECKING:
    RetrainingConfig = _Retraining
else:
    RetrainingConfig = retraining_section(METHODS)


# Texts that papers quote, at pinned revisions. `refs/convert/parquet` is the hub's own copy of a data set that only a
# script describes; its commit is recorded with the scores.
NAMED_TEXTS: dict[str, dict[str, object]] = {
    "wikitext2": {
        "path": "Salesforce/wikitext",
        "name": "wikitext-2-raw-v1",
        "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
        "split": "test",
        "license": "cc-by-sa-3.0",
    },
    "ptb": {
        "path": "ptb-text-only/ptb_text_only",
        "name": "penn_treebank",
        "revision": "refs/convert/parquet",
        "split": "validation",
        "field": "sentence",
        "license": "LDC user agreement",
    },
}
NAMED_PROTOCOL = re.compile(r"(?P<text>[\w-]+)(@(?P<length>\d+))?(/bos-(?P<bos>\w+))?(/stride-(?P<stride>\d+))?")


def named_protocol(text: str) -> dict[str, object]:
    """`wikitext2@128/bos-first` as the fields of a `PerplexitySource`; raises `ValueError` for another name."""
    match = NAMED_PROTOCOL.fullmatch(text)
    if match is None or match["text"] not in NAMED_TEXTS:
        raise ValueError(
            f"{text!r} is no named protocol; give NAME@LENGTH/bos-MODE with NAME one of {', '.join(NAMED_TEXTS)}, such "
            "as wikitext2@128/bos-first, or {path: ...} for a text of your own"
        )
    asked = {"segment_length": match["length"], "bos": match["bos"], "stride": match["stride"]}
    return {**NAMED_TEXTS[match["text"]], **{key: value for key, value in asked.items() if value is not None}}


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
    stride: int | None = Field(None, ge=1)
    """Tokens by which a sliding window moves on: each window of segment_length predicts only those that are new to it,
    with the others as context. Segments do not overlap unless given."""

    @model_validator(mode="after")
    def _limit_covers_a_segment(self) -> "PerplexitySource":
        if self.max_tokens is not None and self.max_tokens < self.segment_length:
            raise ValueError(f"max_tokens is {self.max_tokens}, less than one segment of {self.segment_length}")
        if self.stride is not None and not self.stride < self.segment_length:
            raise ValueError(f"stride is {self.stride}; windows of {self.segment_length} tokens overlap below that")
        if self.stride is not None and self.bos == "each":
            raise ValueError("stride: windows overlap, so that bos must be first or none")
        return self

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return named_protocol(value) if isinstance(value, str) else value


class SelectionConfig(Section):
    """Scores that steer the search and choose the best of each size."""

    perplexity: Annotated[tuple[PerplexitySource, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    """Texts; the search minimises the mean of their log-perplexities."""


def _file_name(name: str) -> str:
    if re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError(f"{name!r} becomes part of a file's name: / and \\ and control characters cannot be in it")
    return name


class GenerationConfig(Section):
    """How a generative task lets the model write."""

    max_tokens: int | None = Field(None, ge=1)
    """New tokens, at most; the task's own number unless given."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most likely token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sampling keeps the most likely tokens up to this share of probability."""


class TaskConfig(Section):
    """An lm-eval task or group, by its name alone or with settings."""

    task: Annotated[str, AfterValidator(_file_name)] = Field(min_length=1)
    """Its name in lm-eval, or in evaluation.task_directory."""
    num_fewshot: int | None = Field(None, ge=0)
    """Solved examples in front of each item; the task's own number unless given."""
    limit: int | None = Field(None, ge=1)
    """Items; evaluation.task_limit unless given."""
    chat_template: bool = False
    """Put each item in the tokenizer's chat template."""
    generation: GenerationConfig | None = None
    """For generative tasks; the task's own settings unless given."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"task": value} if isinstance(value, str) else value


LOCAL_SUFFIX = "_local"
"""Ending of the name of a task's copy with data of one's own."""
# The seven zero-shot tasks of the paper.
TASK_SETS = {
    "zero_shot": ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
}


def _expand_task_sets(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        value = (value,)
    return [task for name in value for task in (TASK_SETS.get(name, (name,)) if isinstance(name, str) else (name,))]


def _distinct_tasks(tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
    distinct(tuple(repr(task) for task in tasks))
    return tasks


class ReportConfig(Section):
    """Scores measured once, after the search, for quoting."""

    perplexity: Annotated[tuple[PerplexitySource, ...], BeforeValidator(as_tuple)] = ()
    """Texts, measured for every model; at least one should never be trained on."""
    tasks: Annotated[tuple[TaskConfig, ...], BeforeValidator(_expand_task_sets), AfterValidator(_distinct_tasks)] = ()
    """lm-eval tasks and groups, measured for the dense model, the best of each size and the controls; zero_shot stands
    for the paper's seven."""
    agreement: Annotated[tuple[PerplexitySource, ...], BeforeValidator(as_tuple)] = ()
    """Texts on which predictions are compared with the dense model's; measured for the same models as tasks."""
    metrics: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Your own measures, each the import path module:function of a function of (model, tokenizer) that returns a
    number; measured for the same models as tasks."""
    efficiency: bool = False
    """Also measure speed and memory of the best model of each size; see evaluation.efficiency."""

    @field_validator("metrics")
    @classmethod
    def _import_paths(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for metric in metrics:
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", metric):
                raise ValueError(f"{metric!r} is no import path; give module:function")
        return metrics


class EfficiencyConfig(Section):
    """How speed and memory are measured: a fixed prompt, a forced number of new tokens, every batch size with every
    length. The defaults are the paper's."""

    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)] = (
        1, 8, 16, 32, 64, 128, 256,
    )  # fmt: skip
    """Sequences generated at once."""
    output_lengths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple)] = (128, 512)
    """New tokens."""
    prompt_length: int = Field(12, ge=1)
    """Tokens of the prompt."""
    runs: int = Field(20, ge=1)
    """Measured generations of each shape and model."""
    warmups: int = Field(10, ge=0)
    """Generations before them that are not counted."""
    static_cache: bool = False
    """Generate with a cache of fixed size."""
    compile: bool = False
    """Compile the decoding step, as a server would; needs static_cache, and 3 warmups to compile in."""

    @model_validator(mode="after")
    def _compile_has_what_it_needs(self) -> "EfficiencyConfig":
        if self.compile and not self.static_cache:
            raise ValueError("compile is true, but static_cache is false; set both")
        if self.compile and self.warmups < 3:
            raise ValueError(f"compile is true, but warmups is {self.warmups}; compiling takes the first 3")
        return self


class EvaluationConfig(Section):
    """How models are scored."""

    selection: SelectionConfig
    report: ReportConfig = ReportConfig()
    efficiency: EfficiencyConfig = EfficiencyConfig()
    task_directory: Url | None = None
    """Directory of your own lm-eval task files."""
    task_limit: int | None = Field(None, ge=1)
    """Items per task; all unless given. Fewer items rank nothing: 100 have a standard error of 4 to 5 points."""
    batch_size: int = Field(8, ge=1)
    """Segments or task requests per forward pass; halved where memory does not suffice."""


def _as_range(value: object) -> object:
    """One number of workers, alone or as the command line's list of one, is the range from it to itself."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return (*values, *values) if len(values) == 1 else value


def _ascending(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("give a number of workers, or [fewest, most] with fewest at most most")
    return bounds


class NodeGroup(Section):
    """Equal nodes that an autoscaling cluster starts when they are needed."""

    max_nodes: int = Field(ge=1)
    """At most so many (count), as the cluster's own configuration says."""
    cpus: float = Field(gt=0)
    """CPUs of a node, as Ray sees them."""
    gpus: float = Field(0, ge=0)
    """GPUs of a node."""
    labels: dict[str, str] = Field({})
    """Ray labels of a node, such as {pool: evaluation}."""


class ResourcesConfig(Section):
    """Machines. Nothing here changes a number in the report."""

    workers: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
        BeforeValidator(_as_range),
        AfterValidator(_ascending),
    ] = (1, 1)
    """Training processes of one trial: a number, or [fewest, most] to take what the cluster has and follow it as it
    shrinks and grows."""
    resize_seconds: float = Field(300, gt=0)
    """How often a trial with a range of workers looks for room to grow (seconds). Growing starts the workers anew from
    the last checkpoint."""
    shard_group: int | None = Field(None, ge=1)
    """Workers over which one copy of the model is sharded, such as those of a node (HSDP); all unless given. Must
    divide the number of workers."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPUs that Ray reserves for each training process, which computes with as many threads, rounded up."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of each training process: 0 trains on CPU."""
    worker_labels: dict[str, str] = Field({})
    """Labels of the nodes that training processes run on, such as {pool: training}; any node unless given."""
    evaluators: int = Field(1, ge=1)
    """Evaluation processes, at most; started on demand, ended when idle."""
    cpus_per_evaluator: float = Field(0.5, gt=0)
    """CPUs that Ray reserves for each evaluation process."""
    gpus_per_evaluator: float = Field(0, ge=0)
    """GPUs (or a fraction) of each evaluation process."""
    evaluator_labels: dict[str, str] = Field({})
    """Labels of the nodes that evaluation processes run on, such as {pool: evaluation}; any node unless given."""
    evaluation_timeout_seconds: float = Field(7200, gt=0)
    """After this long (seconds) without progress one score counts as hung: its process is replaced, and it is tried
    again."""
    cpus_per_scorer: float = Field(1, gt=0)
    """CPUs that Ray reserves for each scoring task."""
    gpus_per_scorer: float = Field(0, ge=0)
    """GPUs (or a fraction) of each scoring task."""
    scoring_shards: int = Field(1, ge=1)
    """Tasks among which the calibration sequences of forward-only criteria are cut (count)."""
    scoring_memory_gib: float | None = Field(None, gt=0)
    """Memory of a scoring task for hidden states (GiB): what does not fit is walked in several passes over the
    weights. Half of the free memory of its device unless given."""
    node_groups: tuple[NodeGroup, ...] = ()
    """Nodes that the cluster starts itself, such as [{max_nodes: 8, cpus: 32, gpus: 4}]. Ray does not tell them, so
    what needs more than the running nodes and these is refused at the start."""
    node_wait_seconds: float = Field(1800, gt=0)
    """How long a trial waits for its nodes to start, and an evaluator for one that could hold it (seconds)."""

    @property
    def min_workers(self) -> int:
        """Without these no trial starts."""
        return self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers[1]

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while a trial runs."""
        return self.min_workers < self.max_workers


class WandbConfig(Section):
    """Weights & Biases; needs the package wandb."""

    project: str = Field(min_length=1)
    """Project of the runs. The key comes from WANDB_API_KEY in the environment of the driver's node, never from a
    configuration; WANDB_MODE=offline needs none."""
    entity: str | None = None
    """User or team that the project belongs to; the key's own unless given."""


class MlflowConfig(Section):
    """MLflow; needs the package mlflow."""

    tracking_uri: Url
    """Server or database of the runs, such as https://mlflow.example.org or sqlite:////absolute/path.db. Credentials
    come from MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment."""
    experiment: str | None = Field(None, min_length=1)
    """Experiment of the runs in MLflow; the name of this experiment unless given."""

    @field_validator("tracking_uri")
    @classmethod
    def _no_directory(cls, uri: str) -> str:
        if "://" not in uri and uri != "databricks":
            raise ValueError("give the URL of a server or database; MLflow keeps no more runs in plain directories")
        return uri


class TrackingConfig(Section):
    """Experiment trackers that trials are logged to, beside TensorBoard. Nothing here changes a number in the
    report."""

    wandb: WandbConfig | None = None
    """Weights & Biases, such as {project: shortened}."""
    mlflow: MlflowConfig | None = None
    """MLflow, such as {tracking_uri: https://mlflow.example.org}."""


TRIAL_DRIVER_CPUS = 0.1
"""CPUs that Ray reserves for the process that drives a trial, beside its workers; Tune refuses zero."""
DRIVER_RESOURCE = "trial_driver"
"""Custom resource of nodes that hold trial drivers instead, one each: nodes that stay, such as the head."""

EXPERIMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class SearchConfig(Section):
    """One experiment."""

    experiment: str
    """Name of the experiment: letters, digits, - and _."""
    storage: StorageConfig = StorageConfig()
    model: ModelConfig
    calibration: OneOrSeveral[CalibrationConfig]
    """Text that blocks are scored on; a list is an axis of the search."""
    # Other units will stand beside it in a union that `unit` discriminates.
    pruning: OneOrSeveral[BlockPruning] = BlockPruning()
    """What is removed, and how it is chosen; a list is an axis of the search, each entry with its own criteria."""
    search: SearchSection
    retraining: RetrainingConfig
    evaluation: EvaluationConfig
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def criteria(self) -> tuple[str, ...]:
        """Distinct criteria of all entries, in their order."""
        return tuple(dict.fromkeys(criterion for entry in self.prunings for criterion in entry.criteria))

    @property
    def reads_calibration(self) -> bool:
        """Whether any criterion reads calibration text."""
        return any(map(reads_text, self.criteria))

    @property
    def prunings(self) -> tuple[BlockPruning, ...]:
        """Every entry of `pruning`."""
        return self.pruning if isinstance(self.pruning, tuple) else (self.pruning,)

    @property
    def calibrations(self) -> tuple[CalibrationConfig, ...]:
        """Every entry of `calibration`."""
        return self.calibration if isinstance(self.calibration, tuple) else (self.calibration,)

    @property
    def num_rankings(self) -> int:
        """Rankings of the blocks: criteria, those that read text once for each calibration."""
        criteria = [criterion for entry in self.prunings for criterion in entry.criteria]
        return sum(len(self.calibrations) if reads_text(criterion) else 1 for criterion in criteria)

    @field_validator("experiment")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not EXPERIMENT_NAME.fullmatch(name):
            raise ValueError("a name has 1 to 100 letters, digits, - and _, and starts with a letter or digit")
        return name

    @model_validator(mode="after")
    def _budgets_match_ratios(self) -> "SearchConfig":
        tokens, ratios = self.retraining.tokens, self.search.ratios
        if isinstance(tokens, dict) and (set(tokens) != set(ratios) or self.search.removed_blocks):
            raise ValueError(
                f"retraining.tokens is given for ratios {sorted(tokens)}, but the search has ratios {sorted(ratios)} "
                f"and removed_blocks {list(self.search.removed_blocks)}; give one budget, or one for each ratio"
            )
        return self

    @model_validator(mode="after")
    def _controls_have_a_corpus(self) -> "SearchConfig":
        if self.search.controls and not self.retraining.uses_corpus:
            raise ValueError(
                f"search.controls is {list(self.search.controls)}, which train on retraining.data, but no method of "
                f"{list(self.retraining.methods)} does; add cpt or drop them"
            )
        return self

    @model_validator(mode="after")
    def _time_has_a_reference(self) -> "SearchConfig":
        if self.search.equal_seconds and "cpt" not in self.retraining.methods:
            raise ValueError(
                f"search.equal_seconds is true, but retraining.methods is {list(self.retraining.methods)}; the time is "
                "that of cpt: add it"
            )
        return self

    @model_validator(mode="after")
    def _random_applies(self) -> "SearchConfig":
        for index, (path, entry) in enumerate(zip(entry_paths("pruning", self.prunings), self.prunings, strict=True)):
            used = "random" in entry.criteria or ("random" in self.search.controls and index == 0)
            if "random" in entry.model_fields_set and not used:
                raise ValueError(
                    f"options of random are given, but {path}.criteria is {list(entry.criteria)} and "
                    f"search.controls {list(self.search.controls)}; add 'random' to one or drop them"
                )
        return self

    @model_validator(mode="after")
    def _entries_differ(self) -> "SearchConfig":
        if len(set(self.calibrations)) < len(self.calibrations):
            raise ValueError("calibration: an entry is listed twice")
        if len(self.calibrations) > 1 and not self.reads_calibration:
            raise ValueError(f"calibration lists {len(self.calibrations)} texts, but no criterion of pruning reads any")
        seen: dict[str, list[dict[str, object]]] = {}
        for path, entry in zip(entry_paths("pruning", self.prunings), self.prunings, strict=True):
            for criterion in entry.criteria:
                if entry.settings(criterion) in seen.setdefault(criterion, []):
                    raise ValueError(f"{path}.criteria: another entry has {criterion!r} with the same settings")
                seen[criterion].append(entry.settings(criterion))
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "SearchConfig":
        retraining, resources = self.retraining, self.resources
        batches = {"retraining.global_batch_size": retraining.global_batch_size}
        if retraining.uses_instructions and retraining.instructions:
            batches["retraining.instructions.global_batch_size"] = retraining.instructions.global_batch_size
        for field, batch in batches.items():
            if batch < resources.max_workers:
                raise ValueError(f"{field} is {batch}, fewer sequences than resources.workers {resources.max_workers}")
            if resources.elastic:
                continue  # shares are padded, whatever the number of workers
            if batch % resources.max_workers:
                raise ValueError(f"{field} is {batch}, which resources.workers {resources.max_workers} does not divide")
            share = batch // resources.max_workers
            if share % min(share, retraining.micro_batch_size):
                raise ValueError(
                    f"{field} is {batch}, so that each of {resources.max_workers} worker(s) has {share} sequences, "
                    f"which retraining.micro_batch_size {retraining.micro_batch_size} does not divide"
                )
        return self

    @model_validator(mode="after")
    def _group_divides(self) -> "SearchConfig":
        group, resources = self.resources.shard_group, self.resources
        if group is not None and (resources.elastic or resources.max_workers % group):
            raise ValueError(
                f"resources.shard_group is {group}, but resources.workers is {list(resources.workers)}; give a fixed "
                "number of workers that it divides"
            )
        return self


# Keys that change where or how fast an experiment runs, never a number in its report.
PLACEMENT_KEYS = (
    "storage.url",
    "storage.outage_seconds",
    "search.max_concurrent_trials",
    "search.max_failures",
    "retraining.checkpoint_tokens",
    "retraining.micro_batch_size",
    "retraining.keep_stable_checkpoint",
    "retraining.max_skipped_steps",
    "retraining.activation_checkpointing",
    "retraining.compile",
    "retraining.cpu_offload",
    "evaluation.batch_size",
)
# Sections of such keys alone.
PLACEMENT_SECTIONS = ("resources.", "tracking.")


def entry_paths(section: str, entries: Sequence[object]) -> tuple[str, ...]:
    """Where each entry of a section that may be a list stands in the configuration, for messages."""
    return (section,) if len(entries) == 1 else tuple(f"{section}.{index}" for index in range(len(entries)))


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

    Keys that only say where or how fast an experiment runs are left out; among these is the size of micro-batches
    unless the masks of a dropout, which are drawn for each of them, depend on it.
    """
    with contextlib.suppress(ValidationError):  # A field that did not exist when it was stored has its default.
        stored = SearchConfig.model_validate(stored).model_dump(mode="json")
    old, new = flatten(stored), flatten(config.model_dump(mode="json"))
    placement = set(PLACEMENT_KEYS)
    if config.retraining.drops_out:
        placement.discard("retraining.micro_batch_size")
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(PLACEMENT_SECTIONS) and key not in placement
    }


def _section_at(location: Sequence[str | int]) -> type[BaseModel] | None:
    """The section at `location`."""
    section: type[BaseModel] = SearchConfig
    for part in location:
        if isinstance(part, int) or part in FORMS:
            continue
        field = section.model_fields.get(part)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return None
        section = inner
    return section


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if section := _section_of(argument):
            return section
    return None


def _unknown(key: str, value: object, section: type[BaseModel] | None) -> str:
    """What to say of a key that a section does not have: the name that is nearest, by the keys that it holds where it
    is a section itself, then by its spelling."""
    fields = section.model_fields if section else {}
    held = value.keys() if isinstance(value, Mapping) else set()
    inner = {name: _section_of(field.annotation) for name, field in fields.items()}
    shared = {name: len(held & one.model_fields.keys()) if one else 0 for name, one in inner.items()}
    most = max(shared.values(), default=0)
    alike = [name for name, count in shared.items() if count == most]
    near = difflib.get_close_matches(key, alike, n=1, cutoff=0.0 if most else 0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"


def describe_errors(error: ValidationError) -> str:
    """One line per fault: the field, the value, what is allowed."""
    lines = []
    faults = error.errors()
    for fault in faults:
        location = fault["loc"]
        if any(other["loc"][: len(location)] == location for other in faults if len(other["loc"]) > len(location)):
            continue  # A fault of the parts explains the fault of the whole.
        name = ".".join(str(part) for part in location if part not in FORMS) or "config"
        if fault["type"] == "extra_forbidden":
            lines.append(
                f"{name}: unknown key; {_unknown(str(location[-1]), fault['input'], _section_at(location[:-1]))}"
            )
        elif fault["type"] == "missing":
            lines.append(f"{name}: required")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            unsaid = isinstance(fault["input"], Mapping) or "credentials" in message
            value = "" if unsaid else f" (is {fault['input']!r})"
            lines.append(f"{name}: {message[:1].lower() + message[1:]}{value}")
    return hidden("\n".join(lines))


def parse_config(values: Mapping[str, object]) -> SearchConfig:
    """Check `values`; raises `BadInputError` with one line per fault."""
    try:
        return SearchConfig.model_validate(values)
    except ValidationError as error:
        raise BadInputError(describe_errors(error)) from None
