"""All scores of one model in one process."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.units import MetricUnit, Unit
from shortened_llm.records import EvalScores, ModelRef
from shortened_llm.storage.store import Store
from tests.evaluation.test_identity import unit_of

OWN = """
def fails(model, tokenizer):
    raise ZeroDivisionError("no items")


def is_infinite(model, tokenizer):
    return float("inf")
"""


def scores_of(units: tuple[Unit, ...], model: ModelRef, store: Store) -> EvalScores:
    return evaluate(model, units, store, LoadedModels("float32", "cpu"), batch_size=2)


def test_one_that_fails_is_missing_and_costs_no_other(
    tiny_model: ModelRef, local_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_measures.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = unit_of(tmp_path / "text.jsonl", "one " * 200, segment_length=16, bos="none")
    broken = tuple(MetricUnit(path=f"failing_measures:{name}") for name in ("fails", "is_infinite"))
    scores = scores_of((*broken, text), tiny_model, local_store)
    assert len(scores.perplexity) == 1
    first, second = scores.missing
    assert (first.name, first.cause) == ("metric failing_measures:fails", "ZeroDivisionError: no items")
    assert second.name == "metric failing_measures:is_infinite"


def test_a_model_whose_files_are_gone_is_named(tiny_model: ModelRef, local_store: Store, tmp_path: Path) -> None:
    text = unit_of(tmp_path / "text.jsonl", "one " * 200, segment_length=16, bos="none")
    gone = replace(tiny_model, url=str(tmp_path / "gone"))
    (missing,) = scores_of((text,), gone, local_store).missing
    assert re.search(r"model .*/gone: its files are gone .*run the search again", missing.cause)
