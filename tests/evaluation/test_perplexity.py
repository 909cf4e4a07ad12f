"""Perplexity against a straight computation, for each protocol."""

import json
import math
from pathlib import Path

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from transformers import ByT5Tokenizer, PreTrainedModel, PreTrainedTokenizerFast

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError
from shortened_llm.evaluation import perplexity
from shortened_llm.evaluation.agreement import DenseStates, measure_agreement
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.perplexity import Segments, measure_losses, part_bounds, text_segments
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.units import AgreementUnit, TextUnit
from shortened_llm.models.directory import load_tokenizer, model_directory
from shortened_llm.models.load import load_model
from shortened_llm.records import EvalScores, ModelRef, PerplexityScore
from shortened_llm.storage.store import Store
from tests.conftest import keeping

TEXTS = ["Once there was a cat.", "", "It sat on a mat, and it was happy with the mat it had."]


@pytest.fixture
def unit(tmp_path: Path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def make(**protocol: object) -> TextUnit:
        source = PerplexitySource(path=str(path), **protocol)  # type: ignore[arg-type]
        documents = Documents(
            source=source,
            purpose="report",
            shared_with=(),
            files=(str(path),),
            commit=None,
            field_path="evaluation.report.0",
        )
        return TextUnit(documents=documents, source=source)

    return make


def measure(model: PreTrainedModel, segments: Segments, text: TextUnit, *, batch_size: int) -> PerplexityScore:
    bounds = part_bounds(len(segments.tokens), text.source.segment_length)
    return text.join([measure_losses(model, segments, part, batch_size=batch_size) for part in bounds])


def with_bos(tiny_model: ModelRef):
    tokenizer = load_tokenizer(model_directory(tiny_model))
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize(
    ("bos", "length", "limit"), [("first", 16, None), ("each", 16, None), ("none", 16, None), ("first", 8, 20)]
)
def test_perplexity_is_that_of_a_straight_computation(
    bos: str, length: int, limit: int | None, unit, tiny_model: ModelRef
) -> None:
    tokenizer, model = with_bos(tiny_model), load_model(tiny_model, "float32")
    text = unit(bos=bos, segment_length=length, max_tokens=limit)
    segments = text_segments(text.documents, text.source, tokenizer)
    score = measure(model, segments, text, batch_size=3)

    ids = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    ids = ([tokenizer.bos_token_id] if bos == "first" else []) + ids
    ids = ids[:limit]
    losses = []
    for start in range(0, len(ids) - length + 1, length):
        segment = ([tokenizer.bos_token_id] if bos == "each" else []) + ids[start : start + length]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([segment])).logits[0, :-1]
        losses.append(F.cross_entropy(logits, torch.tensor(segment[1:]), reduction="none").double())
    expected = torch.cat(losses)
    assert score.num_predictions == len(expected)
    assert score.perplexity == pytest.approx(math.exp(expected.mean().item()), rel=1e-6)
    assert f"@{length} bos-{bos}" in score.protocol


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_parts_of_a_text_are_its_segments(
    dtype: str, unit, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = with_bos(tiny_model), load_model(tiny_model, dtype)
    text = unit(bos="first", segment_length=8)
    segments = text_segments(text.documents, text.source, tokenizer)
    whole = measure(model, segments, text, batch_size=2)
    monkeypatch.setattr(perplexity, "PART_TOKENS", 33)  # 4 of its 10 segments: two batches, as in the whole text
    assert part_bounds(len(segments.tokens), 8) == [(0, 4), (4, 8), (8, 10)]
    assert measure(model, segments, text, batch_size=2) == whole


def test_a_part_that_halves_its_batches_predicts_the_same_tokens(unit, tiny_model: ModelRef) -> None:
    tokenizer, model = with_bos(tiny_model), load_model(tiny_model, "float32")
    text = unit(bos="first", segment_length=4)
    segments = text_segments(text.documents, text.source, tokenizer)
    whole = measure(model, segments, text, batch_size=4)
    halved = text.join(
        [
            measure_losses(model, segments, bounds, batch_size=size)
            for bounds, size in (((0, 8), 4), ((8, 16), 1), ((16, len(segments.tokens)), 2))
        ]
    )
    assert halved.document_predictions == whole.document_predictions
    assert halved.document_nll == pytest.approx(whole.document_nll, abs=2e-4)


@pytest.mark.parametrize(("bos", "stride"), [("none", 4), ("first", 5), ("none", 15)])
def test_a_sliding_window_predicts_each_token_once(bos: str, stride: int, unit, tiny_model: ModelRef) -> None:
    tokenizer, model = with_bos(tiny_model), load_model(tiny_model, "float32")
    text = unit(bos=bos, segment_length=16, stride=stride)
    score = measure(model, text_segments(text.documents, text.source, tokenizer), text, batch_size=3)

    ids = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    ids = ([tokenizer.bos_token_id] if bos == "first" else []) + ids
    losses, start = [], 0
    while start + 16 <= len(ids):
        window = torch.tensor([ids[start : start + 16]])
        with torch.inference_mode():
            logits = model(input_ids=window).logits[0, :-1]
        loss = F.cross_entropy(logits, window[0, 1:], reduction="none").double()
        losses.append(loss if start == 0 else loss[-stride:])
        start += stride
    expected = torch.cat(losses)
    assert score.num_predictions == len(expected) == 15 + stride * (len(losses) - 1)
    assert score.mean_nll == pytest.approx(expected.mean().item(), rel=1e-6)
    assert f"stride {stride}" in score.protocol


@pytest.mark.parametrize("protocol", [{}, {"stride": 6}])
def test_agreement_is_that_of_whole_logits(protocol: dict, unit, tiny_model: ModelRef, tmp_path: Path) -> None:
    dense, model = (
        load_model(tiny_model, "float32"),
        load_model(tiny_model.view(keeping((0, 1, 2, 5, 6, 7))), "float32"),
    )
    text = unit(bos="none", segment_length=16, **protocol)
    segments = text_segments(text.documents, text.source, load_tokenizer(model_directory(tiny_model)))
    states = DenseStates.write(dense, segments, tmp_path, batch_size=3)
    score = measure_agreement(model, states, segments, text.documents, text.source, batch_size=2)
    with torch.inference_mode():
        reference, predicted = (one(input_ids=segments.tokens).logits.double()[:, :-1] for one in (dense, model))
    asked = torch.arange(15) >= torch.tensor(segments.first_new)[:, None] - 1
    log_p, log_q = reference.log_softmax(-1), predicted.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[asked]
    agreed = (log_p.argmax(-1) == log_q.argmax(-1))[asked]
    assert score.num_predictions == len(kl)
    assert score.kl == pytest.approx(kl.mean().item(), rel=1e-5)
    assert score.top1 == pytest.approx(agreed.double().mean().item())
    assert 0 < score.top1 < 1
    same = measure_agreement(dense, states, segments, text.documents, text.source, batch_size=3)
    assert (same.kl, same.top1) == (0.0, 1.0)


# Characters of each document of TEXTS with the blank line behind it, and of the last one without; one character is one
# token of the tiny tokenizer.
LENGTHS = (23, 2, 54)


@pytest.mark.parametrize(
    ("bos", "length", "limit", "predictions"),
    [
        # The first token of a segment is not predicted, unless another one stands before it.
        ("none", 16, None, (21, 2, 37)),
        ("first", 16, None, (22, 2, 51)),  # 80 tokens with the first: one more segment
        ("each", 16, None, (23, 2, 39)),
        ("none", 8, 23, (14,)),
        ("none", 8, 24, (20, 1)),
    ],
)
def test_sums_by_document_are_the_perplexity_taken_apart(
    bos: str, length: int, limit: int | None, predictions: tuple[int, ...], unit, tiny_model: ModelRef
) -> None:
    tokenizer = with_bos(tiny_model)
    text = unit(bos=bos, segment_length=length, max_tokens=limit)
    segments = text_segments(text.documents, text.source, tokenizer)
    scores = [
        measure(load_model(ref, "float32"), segments, text, batch_size=2)
        for ref in (tiny_model, tiny_model.view(keeping((0, 7))))
    ]
    for score in scores:
        assert score.document_predictions == predictions
        assert sum(score.document_predictions) == score.num_predictions
        # What is stored is rounded to 4 decimals.
        total = score.mean_nll * score.num_predictions
        assert sum(score.document_nll) == pytest.approx(total, abs=0.5e-4 * len(predictions) + 1e-9)
    assert scores[0].document_nll != scores[1].document_nll


def test_a_token_over_a_boundary_lies_where_it_begins(unit) -> None:
    """Many tokenizers have tokens of several line breaks: then an empty document has no token of its own."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        ["\n\n\n\n"] * 9, tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    text = unit(bos="none", segment_length=2)
    segments = text_segments(text.documents, text.source, tokenizer)
    tokens, owners = segments.tokens.flatten(), segments.documents.flatten()
    assert owners.unique().tolist() == [0, 2]
    assert tokenizer.decode(tokens[owners == 0]) == TEXTS[0] + "\n\n\n\n"
    assert TEXTS[2].startswith(tokenizer.decode(tokens[owners == 2]))


def test_without_offsets_each_segment_is_a_document(unit) -> None:
    text = unit(bos="none", segment_length=8)
    segments = text_segments(text.documents, text.source, ByT5Tokenizer())
    assert segments.documents.tolist() == [[index] * 8 for index in range(sum(LENGTHS) // 8)]


@pytest.mark.parametrize(
    ("protocol", "word"), [({"segment_length": 4096, "bos": "none"}, "4096"), ({"bos": "first"}, "bos")]
)
def test_an_impossible_protocol_is_refused(protocol: dict, word: str, unit, tiny_model: ModelRef) -> None:
    text = unit(**protocol)
    with pytest.raises(BadInputError, match=word):
        text_segments(text.documents, text.source, load_tokenizer(model_directory(tiny_model)))


@pytest.mark.parametrize("bos", ["first", "each", "none"])
def test_rows_of_tokens_are_segments_as_they_are(bos: str, unit, tiny_model: ModelRef) -> None:
    text = unit(bos=bos, segment_length=4)
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    Path(text.source.path).write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    segments = text_segments(text.documents, text.source, with_bos(tiny_model))
    assert segments.tokens.tolist() == rows
    assert segments.documents.tolist() == [[0] * 4, [1] * 4]


def test_a_score_is_measured_once(
    unit, tiny_model: ModelRef, local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(ref: ModelRef, length: int) -> EvalScores:
        units = [unit(bos="none", segment_length=length)]
        return evaluate(ref, units, local_store, LoadedModels("float32", "cpu"), batch_size=4)

    first = scores(tiny_model, 16)
    view = scores(tiny_model.view(keeping((0, 7))), 16)
    assert view.mean_nll > first.mean_nll
    monkeypatch.setattr("shortened_llm.evaluation.subject.load_model", lambda *_, **__: pytest.fail("loaded again"))
    assert scores(tiny_model, 16) == first
    with pytest.raises(pytest.fail.Exception):
        scores(tiny_model, 8)


def test_a_mean_over_sources_is_over_their_losses() -> None:
    scores = EvalScores(
        perplexity=tuple(
            PerplexityScore(
                unit=s, source=s, protocol="", perplexity=math.exp(n), mean_nll=n, num_predictions=1, document_nll=(),
                document_predictions=(),
            )
            for s, n in (("a", 1.0), ("b", 3.0))
        )
    )  # fmt: skip
    assert scores.mean_nll == 2.0


def test_the_dense_model_agrees_with_itself(unit, tiny_model: ModelRef, local_store: Store) -> None:
    text = unit(bos="none", segment_length=16)
    asked = [AgreementUnit(documents=text.documents, source=text.source, dense=tiny_model)]
    pruned = tiny_model.view(keeping((0, 1, 6, 7)))
    same, other = (
        evaluate(ref, asked, local_store, LoadedModels("float32", "cpu"), batch_size=2) for ref in (tiny_model, pruned)
    )
    assert (same.agreement[0].kl, same.agreement[0].top1) == (0.0, 1.0)
    assert other.agreement[0].kl > 0.01


def test_a_batch_that_memory_does_not_hold_is_halved(
    unit,
    tiny_model: ModelRef,
    local_store: Store,
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units, sizes = [unit(bos="none", segment_length=8)], []
    monkeypatch.setattr(perplexity, "PART_TOKENS", 32)  # three parts

    def short_of_memory(*arguments: object, batch_size: int) -> object:
        sizes.append(batch_size)
        if batch_size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return measure_losses(*arguments, batch_size=batch_size)  # type: ignore[arg-type]

    monkeypatch.setattr(perplexity, "measure_losses", short_of_memory)
    found = evaluate(tiny_model, units, local_store, LoadedModels("float32", "cpu"), batch_size=9)
    assert sizes == [9, 4, 2, 2, 2]  # what the first part found out holds for the others
    assert sum("batch of 9 does not fit in memory; trying 2" in note for note in logged.messages) == 1
    logged.clear()
    assert found.perplexity[0].notes == ("batch of 9 did not fit in memory: halved to 2",)
    assert evaluate(tiny_model, units, local_store, LoadedModels("float32", "cpu"), batch_size=9) == found
    assert not logged.messages
    assert found.perplexity[0].num_predictions == 7 * (sum(LENGTHS) // 8)

    def always_short(*_: object, **__: object) -> object:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(perplexity, "measure_losses", always_short)
    (missing,) = evaluate(
        tiny_model, [unit(bos="none", segment_length=16)], local_store, LoadedModels("float32", "cpu"), batch_size=4
    ).missing
    assert "a batch of one does not fit in memory" in missing.cause


@pytest.mark.parametrize("kind", ["text", "agreement"])
def test_each_forward_pass_is_a_sign_of_life(kind: str, unit, tiny_model: ModelRef, local_store: Store) -> None:
    text = unit(bos="none", segment_length=8)
    view = tiny_model.view(keeping((0, 7)))
    signs: list[None] = []
    loaded = LoadedModels("float32", "cpu", lambda: signs.append(None))
    one = AgreementUnit(documents=text.documents, source=text.source, dense=tiny_model) if kind != "text" else text
    evaluate(view, [one], local_store, loaded, batch_size=2)
    num_batches, num_models = math.ceil(sum(LENGTHS) // 8 / 2), 1 + (kind != "text")
    assert len(signs) == num_batches * num_models
    (model,) = loaded.hold(view)
    model(torch.zeros(1, 2, dtype=torch.long))
    assert len(signs) == num_batches * num_models + 1
