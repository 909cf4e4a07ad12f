"""The section `evaluation`."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shortened_llm.config.base import BosMode, Runtime, Url
from shortened_llm.config.text import TextSource
from shortened_llm.fields import Section, Several

# Texts that papers quote, at pinned revisions. `refs/convert/parquet` is the hub's own copy of a data set that only a
# script describes, all of it one configuration without a name; its commit is recorded with the scores.
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


def _import_paths(metrics: tuple[str, ...]) -> tuple[str, ...]:
    for metric in metrics:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", metric):
            raise ValueError(f"{metric!r} is no import path; give module:function")
    return metrics


Texts = Several[PerplexitySource]
Tasks = Annotated[Several[TaskConfig], BeforeValidator(_expand_task_sets)]
OwnMetrics = Annotated[Several[str], AfterValidator(_import_paths)]


class SelectionConfig(Section):
    """Scores that steer the search and choose the best of each size, measured for every trial, at each rung."""

    perplexity: Texts = Field(min_length=1)
    """Texts; the search minimises the mean of their log-perplexities, unless search.metric names another score."""
    tasks: Tasks = ()
    """lm-eval tasks and groups, for search.metric."""
    metrics: OwnMetrics = ()
    """Your own measures, as in evaluation.report.metrics, for search.metric."""


class ReportConfig(Section):
    """Scores measured once, after the search, for quoting."""

    perplexity: Texts = ()
    """Texts, measured for every model that was not stopped at a rung; at least one should never be trained on."""
    tasks: Tasks = ()
    """lm-eval tasks and groups, measured for the dense model, the best of each size and the controls; zero_shot stands
    for the paper's seven."""
    agreement: Texts = ()
    """Texts on which predictions are compared with the dense model's; measured for the same models as tasks."""
    metrics: OwnMetrics = ()
    """Your own measures, each the import path module:function of a function of (model, tokenizer) that returns a
    number; measured for the same models as tasks."""
    efficiency: bool = False
    """Also measure speed and memory of the best model of each size and way; see evaluation.efficiency."""


Counts = Annotated[Several[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class EfficiencyConfig(Section):
    """How speed and memory are measured: a fixed prompt, a forced number of new tokens, every batch size with every
    length. The defaults are the paper's."""

    batch_sizes: Counts = (1, 8, 16, 32, 64, 128, 256)
    """Sequences generated at once."""
    output_lengths: Counts = (128, 512)
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
    batch_size: Annotated[int, Runtime] = Field(8, ge=1)
    """Segments or task requests per forward pass; halved where memory does not suffice."""

    @property
    def tasks(self) -> dict[str, tuple[TaskConfig, ...]]:
        """By the field that names them."""
        return {"evaluation.selection.tasks": self.selection.tasks, "evaluation.report.tasks": self.report.tasks}

    @property
    def metrics(self) -> dict[str, tuple[str, ...]]:
        """By the field that names them."""
        return {
            "evaluation.selection.metrics": self.selection.metrics,
            "evaluation.report.metrics": self.report.metrics,
        }


NO_EVALUATION = EvaluationConfig.model_construct(selection=SelectionConfig.model_construct(perplexity=()))
"""What the absence of the section means: nothing is measured. Nobody can write it, since an evaluation that is given
needs selection texts."""
