"""Tokenise and pack a corpus once into shards of equal sequences."""

import importlib.metadata
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import TokenDataset
from shortened_llm.storage.payload import local_directory, upload_directory
from shortened_llm.storage.store import Store

KIND = "tokens"
STAGE_VERSION = 1
SHARD_TOKENS = 16 * 2**20
BATCH_DOCUMENTS = 64


def pack_tokens(
    documents: tuple[Documents, ...],
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_identity: str,
    sequence_length: int,
    num_sequences: int,
    store: Store,
    *,
    on_progress: Callable[[str], None],
) -> TokenDataset:
    """Documents, an end-of-text token behind each, joined and cut into sequences; each source's remainder is dropped.

    A source is read until it fills the whole budget, or one shard if that is more.

    Rows of token ids are used as they are, a row being one sequence.

    Args:
        num_sequences: the training budget (sequences).

    Raises:
        BadInputError: the documents do not fill one sequence, or hold unknown token ids.
    """
    at_most = max(num_sequences, SHARD_TOKENS // sequence_length)
    identity = {
        "stage": STAGE_VERSION,
        "documents": [source.identity for source in documents],
        "tokenizer": tokenizer_identity,
        "tokenizers": importlib.metadata.version("tokenizers"),
        "sequence_length": sequence_length,
        "at_most": at_most,
    }
    key = fingerprint(identity)
    if stored := store.read(KIND, key, TokenDataset):
        return stored
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    count = _Count()
    with tempfile.TemporaryDirectory(prefix="shortened_llm_tokens_") as temporary:
        for shard in itertools.chain.from_iterable(
            _shards(
                _token_stream(source, tokenizer, sequence_length, count),
                sequence_length,
                at_most,
            )
            for source in documents
        ):
            np.save(Path(temporary) / f"shard-{count.shards:05d}.npy", shard.astype(dtype))
            count.shards += 1
            count.sequences += len(shard)
            on_progress(f"packed {count.sequences * sequence_length:,} tokens of {count.documents:,} documents")
        if not count.sequences:
            raise BadInputError(
                f"retraining.data: the documents ({count.documents}) do not fill one sequence of {sequence_length} "
                "tokens; add text or set a shorter retraining.sequence_length"
            )
        url = store.attempt_url(KIND, key)
        files = upload_directory(Path(temporary), url)
    dataset = TokenDataset(
        url=url, fingerprint=key, files=files, num_sequences=count.sequences, sequence_length=sequence_length,
        num_documents=count.documents,
    )  # fmt: skip
    store.write(KIND, key, dataset, identity=identity)
    return dataset


class TokenSequences:
    """The sequences of a packed data set, by index, mapped from this node's disk."""

    def __init__(self, dataset: TokenDataset) -> None:
        directory = local_directory(dataset.url, dataset.files)
        self._shards = [np.load(directory / entry.path, mmap_mode="r") for entry in dataset.files]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of sequence `index`, [sequence_length]."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[shard - 1] if shard else 0
        return np.asarray(self._shards[shard][index - start])


class _Count:
    """How far the packing is."""

    documents = 0
    sequences = 0
    shards = 0


def _token_stream(
    source: Documents, tokenizer: PreTrainedTokenizerBase, sequence_length: int, count: _Count
) -> Iterator[np.ndarray]:
    for batch in _batched(source.rows(), BATCH_DOCUMENTS):
        texts = [row for row in batch if isinstance(row, str) and row]
        for ids in tokenizer(texts)["input_ids"] if texts else []:
            count.documents += 1
            yield np.array([*ids, tokenizer.eos_token_id], dtype=np.int64)
        for row in batch:
            if isinstance(row, list):
                if len(row) != sequence_length:
                    raise BadInputError(
                        f"{source.field_path}: a row of token ids in {source.source.path!r} has {len(row)} tokens; "
                        f"rows are used as they are and must have retraining.sequence_length = {sequence_length}"
                    )
                if min(row) < 0 or max(row) >= len(tokenizer):
                    raise BadInputError(
                        f"{source.field_path}: a row of {source.source.path!r} holds token id {max(row)}; the "
                        f"vocabulary has {len(tokenizer)}"
                    )
                count.documents += 1
                yield np.array(row, dtype=np.int64)


def _batched(rows: Iterable, size: int) -> Iterator[list]:
    batch: list = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _shards(stream: Iterator[np.ndarray], sequence_length: int, at_most: int) -> Iterator[np.ndarray]:
    """Arrays [sequences, sequence_length] of about `SHARD_TOKENS` tokens, the last one shorter; `at_most` sequences."""
    per_shard = max(1, SHARD_TOKENS // sequence_length) * sequence_length
    pieces: list[np.ndarray] = []
    pending = 0
    total = 0
    for piece in stream:
        piece = piece[: at_most * sequence_length - total]
        total += len(piece)
        pieces.append(piece)
        pending += len(piece)
        while pending >= per_shard:
            joined = np.concatenate(pieces)
            yield joined[:per_shard].reshape(-1, sequence_length)
            pieces = [joined[per_shard:]]
            pending = len(pieces[0])
        if total == at_most * sequence_length:
            break
    if pending >= sequence_length:
        joined = np.concatenate(pieces)
        yield joined[: pending // sequence_length * sequence_length].reshape(-1, sequence_length)
