"""Calibration sequences: seeds, beginning-of-text tokens, rows of token ids, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from shortened_llm.config import CalibrationConfig
from shortened_llm.data.calibration import calibration_tokens
from shortened_llm.data.sources import Documents
from shortened_llm.errors import BadInputError
from shortened_llm.models.directory import load_tokenizer

VOCAB_SIZE = 300
TEXTS = [{"text": f"{index} " * (20 + index)} for index in range(50)]
SEVEN_ROWS = [{"input_ids": [index, 250, 0]} for index in range(7)]


@pytest.fixture
def tokenizer(tiny_assets: Path):
    return load_tokenizer(tiny_assets / "model")


@pytest.fixture
def draw(tmp_path: Path, tokenizer):
    """Write rows, and draw from them; `options` go to the function, `values` to the configuration."""

    def run(rows: list[dict], options: dict | None = None, tokenizer=tokenizer, **values: object) -> torch.Tensor:
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents = Documents(
            source=CalibrationConfig(path=str(path)),
            purpose="train",
            shared_with=(),
            files=(str(path),),
            commit=None,
            field_path="calibration",
        )
        config = CalibrationConfig(**{"path": str(path), "num_sequences": 5, "sequence_length": 32} | values)
        return calibration_tokens(
            documents, config, tokenizer, **{"vocab_size": VOCAB_SIZE, "bos": False} | (options or {})
        )

    return run


def test_texts_are_drawn_by_seed(draw) -> None:
    assert draw(TEXTS, seed=1).shape == (5, 32)
    assert draw(TEXTS, seed=1).dtype == torch.int64
    assert torch.equal(draw(TEXTS, seed=1), draw(TEXTS, seed=1))
    assert not torch.equal(draw(TEXTS, seed=1), draw(TEXTS, seed=2))


def test_the_draw_of_a_configuration_stays(draw, tokenizer) -> None:
    """Stored scores are read back by their configuration, so the sequences behind it must not change."""
    starts = [tokenizer.decode(sequence[:6]) for sequence in draw(TEXTS, seed=1234)]
    assert starts == [" 38 38", "2 32 3", "8 48 4", "0 10 1", "4 34 3"]


def test_more_sequences_are_added_behind(draw) -> None:
    few = draw(TEXTS)
    for more in (6, 20):
        many = draw(TEXTS, num_sequences=more)
        assert many.shape == (more, 32)
        assert torch.equal(many[:5], few)


def test_rows_of_token_ids_are_used_as_they_are(draw, tokenizer) -> None:
    rows = draw(SEVEN_ROWS, {"bos": True}, sequence_length=3)
    assert rows.tolist() == [row["input_ids"] for row in SEVEN_ROWS[:5]]


def test_a_beginning_token_takes_the_first_place(draw, tokenizer) -> None:
    tokenizer.bos_token = tokenizer.eos_token
    plain, marked = draw(TEXTS), draw(TEXTS, {"bos": True}, tokenizer=tokenizer)
    assert marked[:, 0].tolist() == [tokenizer.bos_token_id] * 5
    assert torch.equal(marked[:, 1:], plain[:, 1:])


def test_a_tokenizer_without_a_beginning_token_is_refused(draw, tokenizer) -> None:
    assert tokenizer.bos_token_id is None
    with pytest.raises(BadInputError, match=r"calibration\.bos: is 'each'.*set none"):
        draw(TEXTS, {"bos": True}, bos="each")


def test_ids_are_bounded_by_the_embedding_table(draw, tokenizer) -> None:
    """Tables are often padded beyond the tokenizer's vocabulary; an id there is odd, but has an embedding."""
    rows = [{"input_ids": [len(tokenizer), VOCAB_SIZE - 1]}] * 5
    assert draw(rows, sequence_length=2).max() == VOCAB_SIZE - 1
    with pytest.raises(BadInputError, match=f"calibration.path.*token id {VOCAB_SIZE - 1}.* 0 to {VOCAB_SIZE - 2}"):
        draw(rows, {"vocab_size": VOCAB_SIZE - 1}, sequence_length=2)
    with pytest.raises(BadInputError, match=r"calibration\.path.*token id \d\d;"):  # a text, by a tokenizer too large
        draw(TEXTS, {"vocab_size": 40})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["calibration.path", "corpus.jsonl"]),
        ([{"text": ""}], ["calibration.num_sequences is 2", "only 0 of the 1"]),
        ([{"text": "too short"}], ["calibration.num_sequences is 2", "only 0 of the 1"]),
        ([{"input_ids": [1, 2]}] * 2, ["calibration.sequence_length is 32", "[2]"]),
        ([{"input_ids": []}] * 2, ["calibration.sequence_length is 32", "[0]"]),
        ([{"input_ids": [1] * 33}] * 2, ["calibration.sequence_length is 32", "[33]"]),
        ([{"input_ids": [1] * 31 + [9999]}] * 2, ["calibration.path", "9999", "0 to 299"]),
        ([{"input_ids": [1] * 31 + [-1]}] * 2, ["calibration.path", "-1", "0 to 299"]),
        ([{"input_ids": [1] * 32}], ["calibration.num_sequences is 2", "holds 1 rows"]),
    ],
)
def test_bad_calibration_is_refused(draw, rows: list[dict], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        draw(rows, num_sequences=2)
    for word in words:
        assert word in str(caught.value)
