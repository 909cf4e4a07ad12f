"""What can be measured of a model: one unit each, with the identity that its score is stored under."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from shortened_llm.config import PerplexitySource, TaskConfig
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation import perplexity, tasks
from shortened_llm.fingerprint import file_sha256

TASK_FILES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".parquet", ".csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextUnit:
    """Perplexity on one text."""

    documents: Documents
    source: PerplexitySource

    @property
    def name(self) -> str:
        return f"perplexity on {self.source.label}"

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
    """One lm-eval task."""

    config: TaskConfig
    directory: str | None
    """The user's own task files."""
    limit: int | None
    """Items; all unless given."""

    @property
    def name(self) -> str:
        return f"task {self.config.task}"

    @property
    def identity(self) -> dict[str, object]:
        return {
            "stage": tasks.STAGE_VERSION,
            "task": self.config.model_dump(mode="json"),
            "files": self._file_hashes(),
            "limit": self.limit,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def _file_hashes(self) -> dict[str, str]:
        """Of the user's own task files and their data."""
        if self.directory is None:
            return {}
        root = Path(self.directory)
        files = (path for path in sorted(root.rglob("*")) if path.suffix in TASK_FILES)
        return {path.relative_to(root).as_posix(): file_sha256(path) for path in files}


Unit = TextUnit | TaskUnit
