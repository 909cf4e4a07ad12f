"""What can be measured of a model: one unit each, with the identity that its score is stored under.

A unit is measured by one process, except that of a text: it is cut into parts, which are joined into its score.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from shortened_llm.config import EfficiencyConfig, PerplexitySource, TaskConfig
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation import agreement, efficiency, own_metric, perplexity, tasks
from shortened_llm.evaluation.subject import Subject
from shortened_llm.evaluation.task_data import task_file_hashes
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import AgreementScore, EfficiencyScore, MetricScore, ModelRef, PerplexityScore, TaskScore
from shortened_llm.storage.layout import EVALUATIONS
from shortened_llm.storage.payload import upload_directory
from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.urls import join


@dataclass(frozen=True, slots=True, kw_only=True)
class TextUnit:
    """Perplexity on one text."""

    documents: Documents
    source: PerplexitySource
    score_type: ClassVar[type[Any]] = PerplexityScore

    @property
    def name(self) -> str:
        return f"perplexity on {self.source.label} {perplexity.protocol(self.documents, self.source)}"

    @property
    def identity(self) -> dict[str, object]:
        return {"stage": perplexity.STAGE_VERSION, **_text_identity(self.documents, self.source)}

    def parts(self, subject: Subject) -> list["TextPart"]:
        """What is measured apart and joined; the same parts whoever measures them."""
        num_segments = len(subject.segments(self.documents, self.source).tokens)
        bounds = perplexity.part_bounds(num_segments, self.source.segment_length)
        return [TextPart(text=self, bounds=one, number=i, count=len(bounds)) for i, one in enumerate(bounds, start=1)]

    def join(self, losses: Sequence[perplexity.TextLosses]) -> PerplexityScore:
        """The score of all parts, in their order."""
        return perplexity.perplexity_score(losses, self.documents, self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Some segments of a text."""

    text: TextUnit
    bounds: tuple[int, int]
    """Its first segment, and the one behind its last."""
    number: int
    count: int
    """How many parts the text has."""

    @property
    def name(self) -> str:
        return self.text.name + (f", part {self.number} of {self.count}" if self.count > 1 else "")

    @property
    def num_tokens(self) -> int:
        return (self.bounds[1] - self.bounds[0]) * self.text.source.segment_length

    def measure(self, subject: Subject) -> perplexity.TextLosses:
        segments = subject.segments(self.text.documents, self.text.source)
        (model,) = subject.loaded.hold(subject.ref)
        return perplexity.measure_losses(model, segments, self.bounds, batch_size=subject.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUnit:
    """One lm-eval task or group.

    Its identity holds lm-eval's version, which stands for its own YAML and Python files, and every file of the user's
    directory with what its YAML names elsewhere (`task_data.py`), whichever of them the task uses. So a change to a
    `utils.py` beside a YAML gives the task a new score, and so does one to its data on the hub.
    """

    config: TaskConfig
    directory: str | None
    """The user's own task files."""
    limit: int | None
    """Items; all unless given."""
    hub_commits: Mapping[str, str] = field(default_factory=dict)
    """Commits of the hub's data sets that it reads; see `task_data.hub_commits`."""
    score_type: ClassVar[type[Any]] = TaskScore

    @property
    def name(self) -> str:
        shots = self.config.num_fewshot
        return f"task {self.config.task}" + ("" if shots is None else f", {shots} shots")

    @property
    def identity(self) -> dict[str, object]:
        return {
            "stage": tasks.STAGE_VERSION,
            "task": self.config.model_dump(mode="json"),
            "files": {} if self.directory is None else task_file_hashes(self.directory),
            "limit": self.limit,
            "hub": dict(self.hub_commits),
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def measure(self, subject: Subject) -> TaskScore:
        (model,) = subject.loaded.hold(subject.ref)
        identity = score_identity(subject.ref, self, subject.loaded.dtype)
        url = subject.store.attempt_url(EVALUATIONS, fingerprint(identity))
        with temporary_directory() as output:
            score = tasks.measure_task(
                model, subject.tokenizer, self.config, directory=self.directory, limit=self.limit,
                batch_size=subject.batch_size, output=Path(output),
            )  # fmt: skip
            upload_directory(Path(output), url)
        return replace(score, results_url=join(url, "results.json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementUnit:
    """How far the dense model's predictions on one text are kept."""

    documents: Documents
    source: PerplexitySource
    dense: ModelRef
    score_type: ClassVar[type[Any]] = AgreementScore

    @property
    def name(self) -> str:
        return f"agreement on {self.source.label} {perplexity.protocol(self.documents, self.source)}"

    @property
    def identity(self) -> dict[str, object]:
        text = _text_identity(self.documents, self.source)
        return {"stage": agreement.STAGE_VERSION, **text, "dense": self.dense.identity}

    def measure(self, subject: Subject) -> AgreementScore:
        segments = subject.segments(self.documents, self.source)
        text = fingerprint(_text_identity(self.documents, self.source))
        dense = subject.loaded.dense_states(self.dense, text, segments, batch_size=subject.batch_size)
        (model,) = subject.loaded.hold(subject.ref)
        return agreement.measure_agreement(
            model, dense, segments, self.documents, self.source, batch_size=subject.batch_size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricUnit:
    """A user's own measure."""

    path: str
    """`module:function`."""
    score_type: ClassVar[type[Any]] = MetricScore

    @property
    def name(self) -> str:
        return f"metric {self.path}"

    @property
    def identity(self) -> dict[str, object]:
        return own_metric.metric_identity(self.path)

    def measure(self, subject: Subject) -> MetricScore:
        (model,) = subject.loaded.hold(subject.ref)
        return own_metric.measure_metric(model, subject.tokenizer, self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyUnit:
    """Speed and memory, beside the dense model's."""

    settings: EfficiencyConfig
    dense: ModelRef

    @property
    def name(self) -> str:
        return "speed and memory"

    @property
    def identity(self) -> dict[str, object]:
        return {
            "stage": efficiency.STAGE_VERSION,
            "settings": self.settings.model_dump(mode="json"),
            "dense": self.dense.identity,
        }

    def measure(self, subject: Subject) -> EfficiencyScore:
        loaded = subject.loaded
        loaded.hold()  # it loads both models itself
        return efficiency.measure_efficiency(
            self.dense,
            subject.ref,
            self.settings,
            dtype=loaded.dtype,
            device=loaded.device,
            num_gpus=loaded.num_gpus,
            on_run=loaded.on_pass,
        )


def _text_identity(documents: Documents, source: PerplexitySource) -> dict[str, object]:
    protocol = perplexity.protocol(documents, source)
    return {"documents": documents.identity, "protocol": protocol, "label": source.label}


WholeUnit = TaskUnit | AgreementUnit | MetricUnit | EfficiencyUnit
Unit = TextUnit | WholeUnit


def score_identity(ref: ModelRef, unit: Unit, dtype: str) -> dict[str, object]:
    """What a score depends on."""
    return {
        "model": ref.identity,
        "unit": unit.identity,
        "dtype": dtype,
        "tokenizers": importlib.metadata.version("tokenizers"),
    }


def unit_fingerprint(unit: Unit, dtype: str) -> str:
    """What the scores of all models on one unit have in common; scores in another dtype are not compared with them."""
    return fingerprint({"unit": unit.identity, "dtype": dtype})
