"""The model that is measured, and what a process holds for measuring it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.agreement import DenseStates
from shortened_llm.evaluation.perplexity import Segments, text_segments
from shortened_llm.fingerprint import fingerprint
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef
from shortened_llm.storage.scratch import scratch_directory
from shortened_llm.storage.store import Store

TEXTS = 4


class LoadedModels:
    """What a process keeps for its next unit: the models of the last one, and the last few texts."""

    def __init__(
        self, dtype: str, device: str, on_pass: Callable[[], None] = lambda: None, *, num_gpus: int = 1
    ) -> None:
        """
        Args:
            on_pass: called at each forward pass, as a sign of life.
            num_gpus: over which a model is spread.
        """
        self.dtype, self.device, self.on_pass, self.num_gpus = dtype, device, on_pass, num_gpus
        self.fitting_sizes: dict[tuple[str, str], int] = {}
        """Batch size by model and unit, where memory held less than was asked for."""
        self.segments = lru_cache(TEXTS)(_segments)
        self._dense_states: dict[tuple[str, str], DenseStates] = {}
        """By dense model and text; every candidate is compared with them."""
        self._models: dict[str, PreTrainedModel] = {}
        self._hooks: list[RemovableHandle] = []

    def hold(self, *refs: ModelRef) -> tuple[PreTrainedModel, ...]:
        """These models and no others; a model that is held already is not loaded again."""
        wanted = {fingerprint(ref.identity): ref for ref in refs}
        if unwanted := self._models.keys() - wanted.keys():
            for key in unwanted:
                del self._models[key]
            clear_device_cache(garbage_collection=True)
        for key, ref in wanted.items():
            if key not in self._models:
                self._models[key] = load_model(ref, self.dtype, device=self.device, num_gpus=self.num_gpus)
        models = tuple(self._models[fingerprint(ref.identity)] for ref in refs)
        while self._hooks:
            self._hooks.pop().remove()
        # Every forward pass embeds its tokens, whichever part of the model it calls.
        self._hooks += [model.get_input_embeddings().register_forward_pre_hook(self._passed) for model in models]
        return models

    def dense_states(self, ref: ModelRef, text: str, segments: Segments, *, batch_size: int) -> DenseStates:
        """What the dense model predicts of a text; it is held for the first candidate alone.

        Args:
            text: fingerprint of the text and its protocol.
        """
        key = fingerprint(ref.identity), text
        if key not in self._dense_states:
            (dense,) = self.hold(ref)
            directory = scratch_directory() / "-".join(key)
            directory.mkdir(exist_ok=True)  # left behind by a batch that did not fit
            self._dense_states[key] = DenseStates.write(dense, segments, directory, batch_size=batch_size)
        return self._dense_states[key]

    def _passed(self, *_: object) -> None:
        if not torch.compiler.is_compiling():  # as a measure of the user's own may
            self.on_pass()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to be measured, and with what."""

    ref: ModelRef
    loaded: LoadedModels
    store: Store
    batch_size: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(model_directory(self.ref))

    def segments(self, documents: Documents, source: PerplexitySource) -> Segments:
        """The text as the model reads it; tokenised once for all its parts."""
        return self.loaded.segments(model_directory(self.ref), documents, source)


def _segments(model: Path, documents: Documents, source: PerplexitySource) -> Segments:
    return text_segments(documents, source, load_tokenizer(model))
