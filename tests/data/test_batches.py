"""The training stream: the same steps on any number of workers, labels, padding, documents apart from one another."""

import itertools
from pathlib import Path

import pytest
import torch

from shortened_llm.data.batches import IGNORED, MicroBatch, TokenSequences, TrainingStream, validation_batches
from shortened_llm.data.packing import pack_tokens
from shortened_llm.models.load import load_model
from shortened_llm.records import ModelRef, Recipe, TokenMixture
from shortened_llm.storage.store import Store
from tests.conftest import SaveModel
from tests.data.sources import corpus, instruction_pairs, packing_job
from tests.models.families import FAMILIES, INDEXED

LENGTH = 16


def recipe(global_batch_size: int = 6, **options: object) -> Recipe:
    values: dict = {
        "method": "cpt", "train_on": "corpus", "num_steps": 10, "global_batch_size": global_batch_size,
        "sequence_length": LENGTH, "seed": 3, "learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95),
        "max_gradient_norm": 1.0, "schedule": "wsd", "warmup_steps": 0, "decay_steps": 1,
        "final_learning_rate_ratio": 0.1,
    }  # fmt: skip
    return Recipe(**values | options)


def pack(job, tokenizer, store: Store):
    return pack_tokens(job, tokenizer, store)


@pytest.fixture
def mixture(tmp_path: Path, tokenizer, store: Store, monkeypatch: pytest.MonkeyPatch) -> TokenMixture:
    """Two sources of 40 and 7 sequences, three to one; on a local directory and on S3."""
    monkeypatch.setenv("SHORTENED_LLM_CACHE", str(tmp_path / "cache"))
    parts = []
    for name, firsts in (("a", range(40)), ("b", range(100, 107))):
        source = corpus(tmp_path, [{"input_ids": list(range(first, first + LENGTH))} for first in firsts], name)
        parts.append(pack(packing_job(source, LENGTH), tokenizer, store))
    return TokenMixture(parts=tuple(parts), weights=(0.75, 0.25))


@pytest.fixture
def pairs(tmp_path: Path, tokenizer, local_store: Store) -> TokenMixture:
    """Ten pairs with responses of different lengths."""
    rows = [{"instruction": "x" * (index % 4), "output": "y" * (1 + 3 * index)} for index in range(10)]
    rows = [row | {"instruction": row["instruction"] or "z"} for row in rows]
    return TokenMixture(parts=(pack(packing_job(instruction_pairs(tmp_path, rows), 256), tokenizer, local_store),))


def test_a_run_may_begin_where_another_ended(mixture: TokenMixture) -> None:
    first, second = (
        TrainingStream(mixture, recipe(first_sequence=place), micro_batch_size=2, rank=0, world_size=1)
        for place in (0, 12)
    )
    assert [second.indices(step) for step in range(3)] == [first.indices(step) for step in range(2, 5)]
    assert second.step(0).micro_batches[0].first_position == 12


def rows_of(micro_batches: tuple[MicroBatch, ...]) -> list[tuple[int, ...]]:
    """Token ids of the sequences that are asked for anything."""
    return [
        tuple(ids.tolist())
        for batch in micro_batches
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
        if (labels != IGNORED).any()
    ]


@pytest.mark.parametrize("global_batch_size", [1, 2, 6, 7])
def test_every_number_of_workers_sees_the_same_steps(mixture: TokenMixture, global_batch_size: int) -> None:
    for step in (0, 1, 5, 40):
        seen = []
        for world_size in (1, 2, 3):
            streams = [
                TrainingStream(mixture, recipe(global_batch_size), micro_batch_size=2, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            steps = [stream.step(step) for stream in streams]
            assert len({len(batch.micro_batches) for batch in steps}) == 1
            assert {batch.num_predictions for batch in steps} == {global_batch_size * (LENGTH - 1)}
            assert {batch.num_tokens for batch in steps} == {global_batch_size * LENGTH}
            firsts = [micro.first_position for batch in steps for micro in batch.micro_batches]
            assert len(set(firsts)) == len(firsts)
            assert firsts[0] == step * global_batch_size
            seen.append([row for batch in steps for row in rows_of(batch.micro_batches)])
            assert all(batch.input_ids.shape[1] == LENGTH for step_batch in steps for batch in step_batch.micro_batches)
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) == global_batch_size


def test_indices_say_what_a_step_reads(mixture: TokenMixture) -> None:
    stream = TrainingStream(mixture, recipe(), micro_batch_size=4, rank=0, world_size=1)
    parts = [TokenSequences(part) for part in mixture.parts]
    for step in range(3):
        expected = [tuple(parts[part][index].tolist()) for part, index in stream.indices(step)]
        assert rows_of(stream.step(step).micro_batches) == expected
    shares = [part for step in range(20) for part, _ in stream.indices(step)]
    assert abs(shares.count(1) - 0.25 * len(shares)) <= 1


def test_labels_are_the_next_tokens(mixture: TokenMixture) -> None:
    (batch,) = TrainingStream(mixture, recipe(4), micro_batch_size=4, rank=0, world_size=1).step(0).micro_batches
    assert torch.equal(batch.labels[:, :-1], batch.input_ids[:, 1:])
    assert (batch.labels[:, -1] == IGNORED).all()
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.position_ids is None


def test_only_responses_are_asked_for(pairs: TokenMixture, tokenizer) -> None:
    sequences = TokenSequences(pairs.parts[0])
    for world_size in (1, 2, 3):
        streams = [
            TrainingStream(
                pairs, recipe(5, sequence_length=256, train_on="instructions"), micro_batch_size=2, rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        steps = [stream.step(1) for stream in streams]
        micro_batches = [micro for batch in steps for micro in batch.micro_batches]
        spans = [sequences.span(index) for _, index in streams[0].indices(1)]
        assert len({len(batch.micro_batches) for batch in steps}) == 1
        asked = sum(int((micro.labels != IGNORED).sum()) for micro in micro_batches)
        assert {batch.num_predictions for batch in steps} == {asked} == {sum(end - start for start, end in spans)}
        assert {batch.num_tokens for batch in steps} == {sum(end for _, end in spans)}
        rows = [row for micro in micro_batches for row in zip(micro.input_ids, micro.labels, strict=True)]
        rows = [(ids, labels) for ids, labels in rows if (labels != IGNORED).any()]
        for (start, end), (ids, labels) in zip(spans, rows, strict=True):
            assert labels[start - 1 : end - 1].tolist() == ids[start:end].tolist()
            assert (labels != IGNORED).sum() == end - start
            assert set(tokenizer.decode(ids[start : end - 1])) == {"y"}
        real = [micro for micro in micro_batches if (micro.labels != IGNORED).any()]
        assert all(((micro.labels != IGNORED).any(0)).nonzero().max() == micro.labels.shape[1] - 2 for micro in real)


def test_prefetched_steps_are_the_same(mixture: TokenMixture) -> None:
    stream = TrainingStream(mixture, recipe(), micro_batch_size=4, rank=1, world_size=2)
    ahead = list(stream.steps(2, 12))
    assert [batch.step for batch in ahead] == list(range(2, 12))
    assert [rows_of(b.micro_batches) for b in ahead] == [rows_of(stream.step(s).micro_batches) for s in range(2, 12)]
    assert stream.waited > 0
    assert list(stream.steps(5, 5)) == []
    assert next(stream.steps(0, 100)).step == 0  # leaving early ends the thread


def test_a_fault_of_the_reader_reaches_the_consumer(mixture: TokenMixture, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TrainingStream(mixture, recipe(), micro_batch_size=4, rank=0, world_size=1)

    def broken(step: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(stream, "step", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(stream.steps(0, 3))


@pytest.mark.parametrize(("num_sequences", "found"), [(5, 5), (10, 10), (100, 47)])
def test_validation_takes_turns_and_is_cut_among_workers(mixture: TokenMixture, num_sequences: int, found: int) -> None:
    whole = rows_of(tuple(validation_batches(mixture, num_sequences, 3, 0, 1)))
    assert len(whole) == found
    assert [row[0] >= 100 for row in whole[:4]] == [False, True, False, True]
    for world_size in (2, 3):
        shares = [validation_batches(mixture, num_sequences, 3, rank, world_size) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        assert [row for share in shares for row in rows_of(tuple(share))] == whole


def documents_of(ids: torch.Tensor, end: int) -> list[slice]:
    ends = [index + 1 for index, token in enumerate(ids.tolist()) if token == end]
    bounds = [0, *ends, *([len(ids)] if not ends or ends[-1] < len(ids) else [])]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_isolated_documents_are_as_if_alone(
    tmp_path: Path, tokenizer, local_store: Store, tiny_model: ModelRef, attention: str
) -> None:
    texts = [
        "Once upon a time",
        "there was",
        "",
        "a",
        "little girl named Lily. She",
        "ran",
        "to the park and sat down.",
    ]
    rows = [{"text": text} for text in texts] * 3
    part = pack(packing_job(corpus(tmp_path, rows), 40), tokenizer, local_store)
    mixture, end = TokenMixture(parts=(part,)), tokenizer.eos_token_id
    options = {"micro_batch_size": 3, "rank": 0, "world_size": 1}
    isolating = recipe(3, sequence_length=40, isolate_documents=True)
    (batch,) = TrainingStream(mixture, isolating, **options, end_of_text=end).step(0).micro_batches
    model = load_model(tiny_model, "float32")
    model.set_attn_implementation(attention)
    with torch.no_grad():
        together = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        mixed = model(input_ids=batch.input_ids, use_cache=False).logits
        count = 0
        for row, ids in enumerate(batch.input_ids):
            for place in documents_of(ids, end):
                alone = model(input_ids=ids[None, place], use_cache=False).logits[0]
                torch.testing.assert_close(together[row, place], alone, atol=1e-4, rtol=1e-4)
                differs = (mixed[row, place] - alone).abs().max() > 0.1
                assert differs == (place.start > 0)
                count += 1
    assert count > 6
    with pytest.raises(ValueError, match="end-of-text"):
        TrainingStream(mixture, isolating, **options)


@pytest.mark.parametrize("family", [*FAMILIES, *INDEXED])
def test_documents_are_isolated_in_every_family(
    family: str, tmp_path: Path, tokenizer, local_store: Store, save_random_model: SaveModel
) -> None:
    """Sliding windows and chunked attention too; rows whose documents end at different places."""
    model, _ = save_random_model((FAMILIES | INDEXED)[family])
    generator, end, length = torch.Generator().manual_seed(0), 2, 24
    ids = torch.randint(3, 97, (3, length), generator=generator)
    ids[0, [5, 6, 19]] = ids[1, [11]] = end
    part = pack(
        packing_job(corpus(tmp_path, [{"input_ids": row} for row in ids.tolist()]), length), tokenizer, local_store
    )
    isolating = recipe(3, sequence_length=length, isolate_documents=True)
    stream = TrainingStream(
        TokenMixture(parts=(part,)), isolating, micro_batch_size=3, rank=0, world_size=1, end_of_text=end
    )
    (batch,) = stream.step(0).micro_batches
    with torch.no_grad():
        together = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        for row, tokens in enumerate(batch.input_ids):
            for place in documents_of(tokens, end):
                alone = model(input_ids=tokens[None, place], use_cache=False).logits[0]
                torch.testing.assert_close(together[row, place], alone, atol=1e-4, rtol=1e-4)
