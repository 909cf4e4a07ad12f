"""What can be measured of a model: one unit each, with the identity that its score is stored under.

Of a divisible unit, several processes may measure some chunks each.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shortened_llm.config import EfficiencyConfig, PerplexitySource, TaskConfig
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation import agreement, efficiency, own_metric, perplexity, tasks
from shortened_llm.evaluation.task_files import task_file_hashes
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import AgreementScore, EfficiencyScore, MetricScore, ModelRef, PerplexityScore, TaskScore


@dataclass(frozen=True, slots=True, kw_only=True)
class TextUnit:
    """Perplexity on one text."""

    documents: Documents
    source: PerplexitySource
    score_type: ClassVar[type[Any]] = PerplexityScore
    is_divisible: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"perplexity on {self.source.label} {perplexity.protocol(self.documents, self.source)}"

    @property
    def identity(self) -> dict[str, object]:
        return {
            "stage": perplexity.STAGE_VERSION,
            "documents": self.documents.identity,
            "protocol": perplexity.protocol(self.documents, self.source),
            "label": self.source.label,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUnit:
    """One lm-eval task or group.

    Its identity holds lm-eval's version, which stands for its own YAML and Python files, and every file of the user's
    directory with what its YAML names elsewhere (`task_files.py`), whichever of them the task uses. So a change to a
    `utils.py` beside a YAML gives the task a new score, and so does one to its data on the hub.
    """

    config: TaskConfig
    directory: str | None
    """The user's own task files."""
    limit: int | None
    """Items; all unless given."""
    hub_commits: Mapping[str, str] = field(default_factory=dict)
    """Of the hub's data sets that it reads; see `task_data.hub_commits`."""
    score_type: ClassVar[type[Any]] = TaskScore
    is_divisible: ClassVar[bool] = True

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementUnit:
    """How far the dense model's predictions on one text are kept."""

    documents: Documents
    source: PerplexitySource
    dense: ModelRef
    score_type: ClassVar[type[Any]] = AgreementScore
    is_divisible: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"agreement on {self.source.label} {perplexity.protocol(self.documents, self.source)}"

    @property
    def identity(self) -> dict[str, object]:
        return {
            "stage": agreement.STAGE_VERSION,
            "documents": self.documents.identity,
            "protocol": perplexity.protocol(self.documents, self.source),
            "label": self.source.label,
            "dense": self.dense.identity,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricUnit:
    """A user's own measure."""

    path: str
    """`module:function`."""
    score_type: ClassVar[type[Any]] = MetricScore
    is_divisible: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"metric {self.path}"

    @property
    def identity(self) -> dict[str, object]:
        return own_metric.metric_identity(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyUnit:
    """Speed and memory, beside the dense model's."""

    settings: EfficiencyConfig
    dense: ModelRef
    score_type: ClassVar[type[Any]] = EfficiencyScore
    is_divisible: ClassVar[bool] = False

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


Unit = TextUnit | TaskUnit | AgreementUnit | MetricUnit | EfficiencyUnit
Score = PerplexityScore | TaskScore | AgreementScore | MetricScore | EfficiencyScore


def unit_fingerprint(unit: Unit, dtype: str) -> str:
    """What the scores of all models on one unit have in common; scores in another dtype are not compared with them."""
    return fingerprint({"unit": unit.identity, "dtype": dtype})
