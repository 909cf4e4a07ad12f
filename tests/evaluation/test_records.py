"""Scores as they are stored: what is read back is what was measured, and every reader of JSON can read it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.perplexity import TextLosses, perplexity_score
from shortened_llm.records import EvalScores, PerplexityScore, TaskScore, from_json, to_json
from shortened_llm.storage.store import Store


def strict(text: str) -> dict:
    """Read as JSON without JavaScript's NaN and Infinity."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    result: dict = json.loads(text, parse_constant=refuse)
    return result


@pytest.fixture
def hopeless(tmp_path: Path) -> PerplexityScore:
    """Of a model that gives each token a probability too small for the inverse to be a number."""
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "hope"}\n')
    source = PerplexitySource(path=str(text))
    documents = Documents(
        source=source, purpose="report", shared_with=(), files=(str(text),), commit=None, field_path="x"
    )
    losses = TextLosses(nll=np.full(3, 800.0, np.float32), documents=np.zeros(3, np.int64))
    return perplexity_score([losses], documents, source)


def test_an_infinite_perplexity_is_stored_as_one(hopeless: PerplexityScore, local_store: Store) -> None:
    assert (hopeless.mean_nll, hopeless.perplexity) == (800.0, math.inf)
    scores = EvalScores(perplexity=(hopeless,))
    text = to_json(scores)
    assert strict(text)["perplexity"][0]["perplexity"] == "Infinity"
    assert from_json(EvalScores, text) == scores
    local_store.write("evaluations", "0", hopeless, identity={"model": "hopeless"}, parents=())
    assert local_store.read("evaluations", "0", PerplexityScore) == hopeless
    (record,) = Path(local_store.url.removeprefix("file://")).rglob("record.json")
    assert strict(record.read_text())["record"]["mean_nll"] == 800.0


def test_what_is_not_a_number_stays_so(local_store: Store) -> None:
    score = TaskScore(
        unit="ab", task="own", metric="longest", value=-math.inf, standard_error=math.nan, num_items=2, protocol="",
        higher_is_better=True,
        item_values=(0.1, math.inf),
    )  # fmt: skip
    local_store.write("evaluations", "0", score, identity={"model": "any"}, parents=())
    for read in (from_json(TaskScore, to_json(score)), local_store.read("evaluations", "0", TaskScore)):
        assert read is not None
        assert read.standard_error is not None
        assert math.isnan(read.standard_error)
        assert (read.value, read.item_values) == (-math.inf, (0.1, math.inf))
