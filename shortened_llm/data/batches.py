"""The training stream: what each worker feeds its model in each step, read from packed data."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from shortened_llm.data.order import locate
from shortened_llm.records import Recipe, TokenDataset, TokenMixture
from shortened_llm.storage.payload import local_directory

IGNORED = -100
"""Label of a position that is asked for nothing, as in `torch.nn.functional.cross_entropy`."""
STEPS_AHEAD = 4
OPEN_FILES = 256
PADDING_LENGTH = 8
"""Length of the row of padding that stands for a missing micro-batch of instruction data (tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The sequences of one forward pass."""

    input_ids: torch.Tensor
    """int64 [sequences, length]."""
    labels: torch.Tensor
    """int64 [sequences, length]: the token that each position should predict, `input_ids` shifted by one; IGNORED at
    the last position, in prompts and in padding. Padding is at the right, so causal attention needs no mask for it."""
    position_ids: torch.Tensor | None
    """int64 [sequences, length], from 0 behind each end-of-text token, where documents must not attend to one
    another."""
    first_position: int
    """Place of its first sequence in the training stream."""
    documents: Mapping[str, Any] = field(default_factory=dict)
    """What the model is given so that documents stay apart, on its device; made of `position_ids` by who knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One optimiser step of one worker."""

    step: int
    micro_batches: tuple[MicroBatch, ...]
    """Every worker has as many: where the global batch does not divide, one row of padding stands for a missing one."""
    num_predictions: int
    """Labels that are not ignored, over all workers."""
    num_tokens: int
    """Over all workers, without padding."""


class TokenSequences:
    """The sequences of a packed data set, by index, mapped from this node's disk."""

    def __init__(self, dataset: TokenDataset) -> None:
        directory = local_directory(dataset.url, dataset.files)
        paths = [directory / entry.path for entry in dataset.files]
        self.has_spans = any(_is_spans(path) for path in paths)
        self._tokens = _Rows([path for path in paths if not _is_spans(path)])
        self._spans = _Rows([path for path in paths if _is_spans(path)])

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of sequence `index`, [sequence_length], padding included."""
        return self._tokens[index]

    def span(self, index: int) -> tuple[int, int]:
        """Where the response of pair `index` begins and where it ends."""
        start, end = self._spans[index]
        return int(start), int(end)


class TrainingStream:
    """The batches of one worker, as a pure function of the step."""

    def __init__(
        self,
        mixture: TokenMixture,
        recipe: Recipe,
        *,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        end_of_text: int | None = None,
    ) -> None:
        """
        Args:
            micro_batch_size: sequences per forward pass, at most.
            end_of_text: the token behind each document, for a recipe that isolates documents.
        """
        if recipe.isolate_documents and end_of_text is None:
            raise ValueError("a recipe that isolates documents needs the end-of-text token")
        self._mixture, self._recipe = mixture, recipe
        self._micro_batch_size, self._rank, self._world_size = micro_batch_size, rank, world_size
        self._parts = [TokenSequences(part) for part in mixture.parts]
        self._end_of_text = end_of_text if recipe.isolate_documents else None
        self.waited = 0.0
        """How long the consumer of `steps` has waited for batches (seconds)."""

    def step(self, step: int) -> StepBatch:
        """This worker's part of optimiser step `step`, from 0."""
        batch, first = self.indices(step), self._first_place(step)
        share = _share(len(batch), self._world_size)
        begin = self._rank * share
        mine = batch[begin : begin + share]
        size = self._micro_batch_size
        return StepBatch(
            step=step,
            micro_batches=tuple(
                _micro_batch(
                    self._parts,
                    mine[start : start + size],
                    first_position=first + begin + start,
                    length=self._recipe.sequence_length,
                    end_of_text=self._end_of_text,
                )
                for start in range(0, share, size)
            ),
            num_predictions=sum(_num_predictions(self._parts, self._recipe.sequence_length, entry) for entry in batch),
            num_tokens=sum(_num_tokens(self._parts, self._recipe.sequence_length, entry) for entry in batch),
        )

    def steps(self, first: int, last: int) -> Iterator[StepBatch]:
        """Steps `first` to `last - 1`, read a few steps ahead by a thread of its own."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
            ahead: deque[Future[StepBatch]] = deque()
            try:
                for step in range(first, last):
                    while len(ahead) < STEPS_AHEAD and step + len(ahead) < last:
                        ahead.append(reader.submit(self.step, step + len(ahead)))
                    started = time.monotonic()
                    batch = ahead.popleft().result()
                    self.waited += time.monotonic() - started
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()

    def indices(self, step: int) -> list[tuple[int, int]]:
        """(part, sequence) of each sequence of the whole global batch, in order."""
        first = self._first_place(step)
        sources, indices = locate(
            np.arange(first, first + self._recipe.global_batch_size),
            seed=self._recipe.seed,
            sizes=tuple(part.num_sequences for part in self._mixture.parts),
            weights=self._mixture.weights,
        )
        return list(zip(sources.tolist(), indices.tolist(), strict=True))

    def _first_place(self, step: int) -> int:
        """Place of a step's first sequence in the order of the data."""
        return self._recipe.first_sequence + step * self._recipe.global_batch_size


def validation_batches(
    mixture: TokenMixture,
    num_sequences: int,
    batch_size: int,
    rank: int,
    world_size: int,
    *,
    end_of_text: int | None = None,
) -> list[MicroBatch]:
    """One worker's share of the first sequences of a mixture, in turn from each part; as many batches on every worker.

    Args:
        num_sequences: over all workers, at most.
        batch_size: sequences per forward pass, at most.
        end_of_text: the token behind each document, where documents must not attend to one another.
    """
    longest = max(part.num_sequences for part in mixture.parts)
    turns = (
        (part, index)
        for index in range(longest)
        for part, dataset in enumerate(mixture.parts)
        if index < dataset.num_sequences
    )
    chosen = [entry for entry, _ in zip(turns, range(num_sequences), strict=False)]
    share = _share(len(chosen), world_size)
    begin = rank * share
    mine = chosen[begin : begin + share]
    parts = [TokenSequences(part) for part in mixture.parts]
    return [
        _micro_batch(
            parts,
            mine[start : start + batch_size],
            first_position=begin + start,
            length=mixture.parts[0].sequence_length,
            end_of_text=end_of_text,
        )
        for start in range(0, share, batch_size)
    ]


class _Rows:
    """The rows of some arrays in files, joined. A corpus has more files than a process may open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._ends = np.cumsum([len(np.load(path, mmap_mode="r")) for path in paths])
        self._open = lru_cache(OPEN_FILES)(lambda file: np.load(paths[file], mmap_mode="r"))

    def __getitem__(self, index: int) -> np.ndarray:
        file = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[file - 1] if file else 0
        return np.asarray(self._open(file)[index - start])


def _is_spans(path: Path | PurePosixPath) -> bool:
    return path.name.startswith("spans-")


def _share(num_sequences: int, world_size: int) -> int:
    """Sequences of each worker; the last ones may have fewer."""
    return -(-num_sequences // world_size)


def _num_predictions(parts: Sequence[TokenSequences], length: int, entry: tuple[int, int]) -> int:
    part, index = entry
    if not parts[part].has_spans:
        return length - 1
    start, end = parts[part].span(index)
    return end - start


def _num_tokens(parts: Sequence[TokenSequences], length: int, entry: tuple[int, int]) -> int:
    part, index = entry
    return parts[part].span(index)[1] if parts[part].has_spans else length


def _micro_batch(
    parts: Sequence[TokenSequences],
    entries: Sequence[tuple[int, int]],
    *,
    first_position: int,
    length: int,
    end_of_text: int | None,
) -> MicroBatch:
    """The given (part, index) sequences, cut to the longest where they are padded; one row of padding if none."""
    spans = [parts[part].span(index) if parts[part].has_spans else (1, length) for part, index in entries]
    if not entries:
        length = PADDING_LENGTH if any(part.has_spans for part in parts) else length
        input_ids = np.zeros((1, length), dtype=np.int64)
    else:
        length = max(end for _, end in spans)
        input_ids = np.stack([parts[part][index][:length] for part, index in entries]).astype(np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row, (start, end) in enumerate(spans):
        labels[row, start - 1 : end - 1] = input_ids[row, start:end]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=None if end_of_text is None else torch.from_numpy(_positions_in_document(input_ids, end_of_text)),
        first_position=first_position,
    )


def _positions_in_document(input_ids: np.ndarray, end_of_text: int) -> np.ndarray:
    """Position of each token behind the last end-of-text token before it, or the sequence's start."""
    positions = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
    starts = np.zeros_like(input_ids)
    starts[:, 1:] = np.where(input_ids[:, :-1] == end_of_text, positions[:, 1:], 0)
    return positions - np.maximum.accumulate(starts, axis=1)
