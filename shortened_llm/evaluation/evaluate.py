"""Score one model on a list of texts and tasks; what was scored before is read back."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation import perplexity, tasks
from shortened_llm.evaluation.perplexity import measure_perplexity, text_segments
from shortened_llm.evaluation.tasks import measure_task
from shortened_llm.fingerprint import file_sha256, fingerprint
from shortened_llm.models.load import load_model, load_tokenizer, model_directory
from shortened_llm.records import EvalScores, ModelRef, PerplexityScore, TaskScore
from shortened_llm.storage.store import Store

KIND = "evaluations"
TASK_FILES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".parquet", ".csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextUnit:
    """Perplexity on one text."""

    documents: Documents
    source: PerplexitySource

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

    task: str
    directory: str | None
    limit: int | None

    @property
    def identity(self) -> dict[str, object]:
        return {
            "stage": tasks.STAGE_VERSION,
            "task": self.task,
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


class _LazyModel:
    """Loaded only when a score is not stored yet."""

    def __init__(self, ref: ModelRef, dtype: str, device: str) -> None:
        self._ref, self._dtype, self._device = ref, dtype, device

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self._ref, self._dtype, device=self._device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(model_directory(self._ref))


def evaluate(
    ref: ModelRef,
    units: Sequence[Unit],
    store: Store,
    *,
    dtype: str,
    batch_size: int,
    device: str,
    on_progress: Callable[[str], None],
) -> EvalScores:
    """All scores of one model, in the order of `units`."""
    loaded = _LazyModel(ref, dtype, device)
    texts: list[PerplexityScore] = []
    accuracies: list[TaskScore] = []
    for unit in units:
        identity = {
            "model": ref.identity,
            "unit": unit.identity,
            "dtype": dtype,
            "tokenizers": importlib.metadata.version("tokenizers"),
        }
        key = fingerprint(identity)
        if isinstance(unit, TextUnit):
            text = store.read(KIND, key, PerplexityScore)
            if text is None:
                on_progress(f"perplexity on {unit.source.label}")
                segments = text_segments(unit.documents, unit.source, loaded.tokenizer)
                text = measure_perplexity(loaded.model, segments, unit.documents, unit.source, batch_size=batch_size)
                store.write(KIND, key, text, identity=identity)
            texts.append(text)
        else:
            accuracy = store.read(KIND, key, TaskScore)
            if accuracy is None:
                on_progress(f"task {unit.task}")
                accuracy = measure_task(
                    loaded.model,
                    loaded.tokenizer,
                    unit.task,
                    directory=unit.directory,
                    limit=unit.limit,
                    batch_size=batch_size,
                )
                store.write(KIND, key, accuracy, identity=identity)
            accuracies.append(accuracy)
    return EvalScores(perplexity=tuple(texts), tasks=tuple(accuracies))
