"""Score one model on a list of texts and tasks; what was scored before is read back."""

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.evaluation.perplexity import measure_perplexity, text_segments
from shortened_llm.evaluation.tasks import measure_task
from shortened_llm.evaluation.units import TextUnit, Unit
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.load import load_model, load_tokenizer, model_directory
from shortened_llm.records import EvalScores, ModelRef, PerplexityScore, TaskScore
from shortened_llm.storage.store import Store

KIND = "evaluations"


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
                on_progress(unit.name)
                segments = text_segments(unit.documents, unit.source, loaded.tokenizer)
                text = measure_perplexity(loaded.model, segments, unit.documents, unit.source, batch_size=batch_size)
                store.write(KIND, key, text, identity=identity)
            texts.append(text)
        else:
            accuracy = store.read(KIND, key, TaskScore)
            if accuracy is None:
                on_progress(unit.name)
                with TemporaryDirectory() as output:
                    accuracy = measure_task(
                        loaded.model,
                        loaded.tokenizer,
                        unit.config,
                        directory=unit.directory,
                        limit=unit.limit,
                        batch_size=batch_size,
                        output=Path(output),
                    )
                store.write(KIND, key, accuracy, identity=identity)
            accuracies.append(accuracy)
    return EvalScores(perplexity=tuple(texts), tasks=tuple(accuracies))
