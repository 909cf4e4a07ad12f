"""Packed shards and the order of training."""

import json
from pathlib import Path

import numpy as np
import pytest

from shortened_llm.config import TextSource
from shortened_llm.data import packing
from shortened_llm.data.order import sequence_at, step_positions
from shortened_llm.data.packing import TokenSequences, pack_tokens
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError
from shortened_llm.models.load import load_tokenizer
from shortened_llm.storage.store import Store


@pytest.fixture
def tokenizer(tiny_assets: Path):
    return load_tokenizer(tiny_assets / "model")


def corpus(tmp_path: Path, rows: list[dict], name: str = "corpus") -> Documents:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Documents(
        source=TextSource(path=str(path)),
        purpose="train",
        shared_with=(),
        files=(str(path),),
        commit=None,
        field_path="retraining.data.0",
    )


def pack(documents: tuple[Documents, ...], tokenizer, length: int, store: Store, budget: int = 1000):
    return pack_tokens(documents, tokenizer, "tokenizer", length, budget, store, on_progress=lambda line: None)


def test_packing_joins_documents_with_an_end_token(
    tmp_path: Path, tokenizer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "SHARD_TOKENS", 16)  # several shards
    texts = ["hello world", "", "a second, longer document", "third"]
    documents = corpus(tmp_path, [{"text": text} for text in texts])
    dataset = pack((documents,), tokenizer, 8, store)
    stream = [token for text in texts if text for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    sequences = TokenSequences(dataset)
    joined = np.concatenate([sequences[index] for index in range(dataset.num_sequences)]).tolist()
    assert joined == stream[: len(stream) // 8 * 8]
    assert len(dataset.files) > 1
    assert dataset.num_documents == 3


def test_packing_is_done_once(tmp_path: Path, tokenizer, local_store: Store) -> None:
    documents = corpus(tmp_path, [{"text": "some text to pack"}])
    first = pack((documents,), tokenizer, 8, local_store)
    assert pack((documents,), tokenizer, 8, local_store) == first
    assert pack((documents,), tokenizer, 4, local_store).fingerprint != first.fingerprint


def test_token_rows_are_packed_as_they_are(tmp_path: Path, tokenizer, local_store: Store) -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    documents = (
        corpus(tmp_path, [{"text": "text with a remainder"}], "text"),
        corpus(tmp_path, [{"input_ids": row} for row in rows]),
    )
    dataset = pack(documents, tokenizer, 4, local_store)
    sequences = TokenSequences(dataset)
    assert [sequences[dataset.num_sequences - 2 + index].tolist() for index in (0, 1)] == rows
    with pytest.raises(BadInputError, match="4 tokens"):
        pack(documents[1:], tokenizer, 8, local_store)


def test_no_more_is_packed_than_can_be_trained_on(
    tmp_path: Path, tokenizer, local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_TOKENS", 16)
    documents = (
        corpus(tmp_path, [{"text": "word " * 100}] * 5, "a"),
        corpus(tmp_path, [{"text": "other " * 100}], "b"),
    )
    dataset = pack(documents, tokenizer, 8, local_store, budget=3)
    assert dataset.num_sequences == 6
    assert dataset.num_documents == 2


def test_unknown_token_ids_are_refused(tmp_path: Path, tokenizer, local_store: Store) -> None:
    with pytest.raises(BadInputError, match="70000"):
        pack((corpus(tmp_path, [{"input_ids": [1, 2, 3, 70000]}]),), tokenizer, 4, local_store)


def test_too_little_text_is_refused(tmp_path: Path, tokenizer, local_store: Store) -> None:
    with pytest.raises(BadInputError, match=r"retraining\.data.*4096"):
        pack((corpus(tmp_path, [{"text": "short"}]),), tokenizer, 4096, local_store)


def test_an_epoch_visits_every_sequence_once() -> None:
    epochs = [[sequence_at(e * 10 + i, seed=3, num_sequences=10) for i in range(10)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_order_does_not_depend_on_the_workers(world_size: int) -> None:
    def positions(step: int) -> list[int]:
        ranks = range(world_size)
        return [p for r in ranks for p in step_positions(step, global_batch_size=8, rank=r, world_size=world_size)]

    assert positions(0) == list(range(8))
    assert positions(3) == list(range(24, 32))
