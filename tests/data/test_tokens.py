"""Packed shards: what they hold, in how many pieces they are made, and what a killed run leaves."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import Sequence, TemplateProcessing

from shortened_llm.data import packing, pieces
from shortened_llm.data.batches import TokenSequences
from shortened_llm.data.packing import PackingJob, check_filled, pack_piece, pack_tokens, pack_with
from shortened_llm.data.pieces import Executor, Piece
from shortened_llm.errors import BadInputError
from shortened_llm.records import TokenDataset
from shortened_llm.storage import layout
from shortened_llm.storage.store import Store
from tests.data.sources import corpus, documents, packing_job, write_rows


def pack(job: PackingJob, tokenizer, store: Store) -> TokenDataset:
    return pack_tokens(job, tokenizer, store)


def rows_of(dataset: TokenDataset) -> list[list[int]]:
    sequences = TokenSequences(dataset)
    return [sequences[index].tolist() for index in range(dataset.num_sequences)]


def token_stream(tokenizer, texts: list[str]) -> list[int]:
    return [token for text in texts if text for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def cut(stream: list[int], length: int) -> list[list[int]]:
    return [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pieces of five rows."""
    for module in (pieces, packing):
        monkeypatch.setattr(module, "PIECE_ROWS", 5)
    return 5


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list:
    """One entry for each piece that was tokenised."""
    found: list = []
    write = packing._write_shards

    def noted(sequences, directory, job, count) -> None:
        write(sequences, directory, job, count)
        found.append(count)

    monkeypatch.setattr(packing, "_write_shards", noted)
    return found


def test_packing_joins_documents_with_an_end_token(
    tmp_path: Path, tokenizer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "SHARD_TOKENS", 16)  # several shards
    texts = ["hello world", "", "a second, longer document", "third"]
    dataset = pack(packing_job(corpus(tmp_path, [{"text": text} for text in texts]), 8), tokenizer, store)
    assert rows_of(dataset) == cut(token_stream(tokenizer, texts), 8)
    assert len(dataset.files) > 1
    assert all(Path(entry.path).name.startswith("tokens-") for entry in dataset.files)
    assert dataset.num_documents == 3


def test_a_tokenizer_s_own_end_token_is_not_written_twice(tmp_path: Path, tokenizer, local_store: Store) -> None:
    """Some add it behind each text by themselves, such as those of Qwen's and Gemma's embedding models."""
    texts = ["hello world", "a second, longer document"]
    expected = token_stream(tokenizer, texts)
    end = tokenizer.eos_token
    adding = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    before = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = Sequence([before, adding]) if before else adding
    assert tokenizer("hello world")["input_ids"][-1] == tokenizer.eos_token_id
    dataset = pack(packing_job(corpus(tmp_path, [{"text": text} for text in texts]), 4), tokenizer, local_store)
    assert rows_of(dataset) == cut(expected, 4)


def test_packing_is_done_once(tmp_path: Path, tokenizer, local_store: Store, tokenised: list) -> None:
    source = corpus(tmp_path, [{"text": "some text to pack"}])
    first = pack(packing_job(source, 8), tokenizer, local_store)
    assert pack(packing_job(source, 8), tokenizer, local_store) == first
    assert len(tokenised) == 1
    assert pack(packing_job(source, 4), tokenizer, local_store).fingerprint != first.fingerprint


@pytest.mark.parametrize("num_rows", [4, 5, 23])
def test_every_piece_drops_its_own_remainder(
    tmp_path: Path, tokenizer, local_store: Store, small_pieces: int, num_rows: int
) -> None:
    texts = [f"text number {index}" * (1 + index % 3) for index in range(num_rows)]
    dataset = pack(packing_job(corpus(tmp_path, [{"text": text} for text in texts]), 8), tokenizer, local_store)
    expected = [
        row
        for start in range(0, num_rows, small_pieces)
        for row in cut(token_stream(tokenizer, texts[start : start + small_pieces]), 8)
    ]
    assert rows_of(dataset) == expected
    assert dataset.num_documents == num_rows


def test_first_ranges_of_all_files_come_first(tmp_path: Path, tokenizer, local_store: Store, small_pieces: int) -> None:
    texts = {name: [f"{name}{index:02d}x" for index in range(count)] for name, count in (("a", 12), ("b", 0), ("c", 5))}
    files = [write_rows(tmp_path / f"{name}.jsonl", [{"text": t} for t in rows]) for name, rows in texts.items()]
    dataset = pack(packing_job(documents(*files), 5), tokenizer, local_store)
    found = [tokenizer.decode(row[:3]) for row in rows_of(dataset)]
    assert found == [t[:3] for t in texts["a"][:5] + texts["c"] + texts["a"][5:]]


def in_threads(job: PackingJob, tokenizer, store: Store, delays: Callable[[], float]) -> tuple[TokenDataset, int]:
    """Pack pieces in a few threads that finish in any order; also how many were started."""

    def work(piece: Piece):
        time.sleep(delays())
        return pack_piece(job, piece, tokenizer, store)

    started: list[Piece] = []
    with ThreadPoolExecutor(4) as threads:

        def start(piece: Piece) -> Future:
            started.append(piece)
            return threads.submit(work, piece)

        executor: Executor[Future] = Executor(start=start, result=lambda f: f.result(), cancel=lambda f: f.cancel())
        return pack_with(executor, job, store), len(started)


@pytest.mark.parametrize("at_most", [None, 1, 17, 40])
def test_the_result_does_not_depend_on_parallelism(
    tmp_path: Path, tokenizer, small_pieces: int, at_most: int | None
) -> None:
    generator = random.Random(0)
    files = [
        write_rows(tmp_path / f"{name}.jsonl", [{"text": "word " * generator.randint(0, 9)} for _ in range(count)])
        for name, count in (("a", 33), ("b", 3), ("c", 10))
    ]
    job = packing_job(documents(*files), 16, at_most)
    alone = pack(job, tokenizer, Store.at(str(tmp_path / "alone")))
    for attempt in range(3):
        store = Store.at(str(tmp_path / f"parallel-{attempt}"))
        together, _ = in_threads(job, tokenizer, store, lambda: generator.random() / 100)
        assert rows_of(together) == rows_of(alone)
        assert together.num_sequences == alone.num_sequences == (at_most or alone.num_sequences)


def test_a_small_corpus_does_not_occupy_a_cluster(
    tmp_path: Path, tokenizer, local_store: Store, small_pieces: int
) -> None:
    few = packing_job(corpus(tmp_path, [{"text": "four words of text"}] * 4), 8)
    assert in_threads(few, tokenizer, local_store, lambda: 0.0)[1] == 1
    files = [write_rows(tmp_path / f"{index}.jsonl", [{"text": f"{index} " * 40}]) for index in range(30)]
    many = packing_job(documents(*files), 8, at_most=20)
    assert in_threads(many, tokenizer, local_store, lambda: 0.0)[1] <= 3


def test_a_restart_tokenises_only_what_is_missing(
    tmp_path: Path, tokenizer, local_store: Store, small_pieces: int, tokenised: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(tmp_path, [{"text": f"document {index} " * 3} for index in range(22)])
    job = packing_job(source, 8)
    real = packing.pack_piece

    def killed(job: PackingJob, piece: Piece, *rest):
        if piece.range == 3:
            raise KeyboardInterrupt
        return real(job, piece, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "pack_piece", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(job, tokenizer, local_store)
    assert len(tokenised) == 3
    assert local_store.read(layout.TOKENS, job.fingerprint, TokenDataset) is None
    dataset = pack(job, tokenizer, local_store)
    assert len(tokenised) == 5
    elsewhere = pack(job, tokenizer, Store.at(str(tmp_path / "elsewhere")))
    assert rows_of(dataset) == rows_of(elsewhere)


def test_budgets_share_whole_pieces(
    tmp_path: Path, tokenizer, local_store: Store, small_pieces: int, tokenised: list
) -> None:
    source = corpus(tmp_path, [{"text": f"document {index} " * 3} for index in range(20)])
    small = pack(packing_job(source, 8, at_most=30), tokenizer, local_store)
    done = len(tokenised)
    assert done < 4
    large = pack(packing_job(source, 8, at_most=50), tokenizer, local_store)
    assert rows_of(large)[:30] == rows_of(small)
    assert len(tokenised) - done < 4


def test_no_more_is_read_than_can_be_trained_on(tmp_path: Path, tokenizer, local_store: Store) -> None:
    source = corpus(tmp_path, [{"text": "word " * 60_000}] * 5)
    dataset = pack(packing_job(source, 8, at_most=3), tokenizer, local_store)
    assert dataset.num_sequences == 3
    assert dataset.num_documents == 1


def test_token_rows_are_packed_as_they_are(tmp_path: Path, tokenizer, local_store: Store) -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    source = corpus(tmp_path, [{"input_ids": row} for row in rows])
    assert rows_of(pack(packing_job(source, 4), tokenizer, local_store)) == rows
    with pytest.raises(BadInputError, match="4 tokens"):
        pack(packing_job(source, 8), tokenizer, local_store)
    skipping = packing_job(source, 8, skip_other_lengths=True)
    assert pack(skipping, tokenizer, local_store).num_sequences == 0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_stored_as_small_as_the_vocabulary_allows(
    tmp_path: Path, tokenizer, local_store: Store, vocab_size: int, dtype: type
) -> None:
    source = corpus(tmp_path, [{"input_ids": [1, vocab_size - 1]}])
    dataset = pack(packing_job(source, 2, vocab_size=vocab_size), tokenizer, local_store)
    assert TokenSequences(dataset)[0].dtype == dtype
    assert rows_of(dataset) == [[1, vocab_size - 1]]


@pytest.mark.parametrize(("row", "bad"), [([1, 2, 3, 300], 300), ([1, -5, 3, 4], -5)])
def test_ids_outside_the_embedding_table_are_refused(
    tmp_path: Path, tokenizer, local_store: Store, row: list[int], bad: int
) -> None:
    with pytest.raises(BadInputError, match=rf"retraining\.data\.0.*token id {bad};.*0 to 299"):
        pack(packing_job(corpus(tmp_path, [{"input_ids": row}]), 4), tokenizer, local_store)


def test_too_little_text_is_refused(tmp_path: Path, tokenizer, local_store: Store) -> None:
    job = packing_job(corpus(tmp_path, [{"text": "short"}]), 4096)
    with pytest.raises(BadInputError, match=r"retraining\.data\.0: the 1 documents .* 4096"):
        check_filled(pack(job, tokenizer, local_store), job)


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
import datasets
from shortened_llm.data import packing
from shortened_llm.models.directory import load_tokenizer
from shortened_llm.storage.store import Store
from tests.data.sources import documents, packing_job
packing.SHARD_TOKENS = 2**20
model, text, small, results = sys.argv[1:]
tokenizer = load_tokenizer(Path(model))
def pack(file):
    dataset = packing.pack_tokens(
        packing_job(documents(file), 2048), tokenizer, Store.at(results)
    )
    return dataset.num_sequences, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
_, before = pack(small)
sequences, after = pack(text)
print(sequences, after - before)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, tiny_assets: Path) -> None:
    """30 MB of text are 30 M tokens of a byte each: 240 MB as int64. Arrow reads 10 MB of a file at a time."""
    text = "all work and no play makes a dull corpus " * 25
    many = write_rows(tmp_path / "many.jsonl", [{"text": f"{index} {text}"} for index in range(30_000)])
    few = write_rows(tmp_path / "few.jsonl", [{"text": f"{index} {text}"} for index in range(2_000)])
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tiny_assets / "model"), many, few, str(tmp_path / "results")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    sequences, mebibytes = int(output[0]), float(output[1])
    assert sequences > 14_000
    assert mebibytes < 120
