"""What a stored score depends on: each difference that changes a number gives it another place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortened_llm.config import EfficiencyConfig, PerplexitySource, TaskConfig
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.evaluate import read_score, store_score
from shortened_llm.evaluation.perplexity import TextLosses, protocol
from shortened_llm.evaluation.units import (
    AgreementUnit,
    EfficiencyUnit,
    TaskUnit,
    TextUnit,
    Unit,
    score_identity,
    unit_fingerprint,
)
from shortened_llm.fingerprint import fingerprint
from shortened_llm.records import EfficiencyScore, Footprint, ModelRef
from shortened_llm.storage.store import Store
from tests.conftest import keeping

MODEL = ModelRef(url="/model", fingerprint="model", files=(), num_blocks=8)


def key(unit: Unit, model: ModelRef = MODEL, dtype: str = "float32") -> str:
    return fingerprint(score_identity(model, unit, dtype))


@pytest.fixture
def text(tmp_path: Path) -> TextUnit:
    return unit_of(tmp_path / "text.jsonl", "one")


def unit_of(path: Path, content: str, **options: object) -> TextUnit:
    path.write_text(f'{{"text": "{content}"}}\n')
    source = PerplexitySource(path=str(path), **options)  # type: ignore[arg-type]
    documents = Documents(
        source=source, purpose="report", shared_with=(), files=(str(path),), commit=None, field_path="x"
    )
    return TextUnit(documents=documents, source=source)


@pytest.mark.parametrize(
    "options",
    [{"segment_length": 64}, {"bos": "each"}, {"max_tokens": 4096}, {"stride": 16}],
)
def test_each_option_of_a_protocol_counts(text: TextUnit, tmp_path: Path, options: dict) -> None:
    other = unit_of(tmp_path / "text.jsonl", "one", **options)
    assert protocol(other.documents, other.source) != protocol(text.documents, text.source)
    assert key(other) != key(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: replace(text, documents=replace(text.documents, shared_with=("train",))),
        lambda text: replace(text, documents=replace(text.documents, shared_with=("train",), purpose="selection")),
    ],
)
def test_the_part_of_a_shared_text_counts(text: TextUnit, change: Callable[[TextUnit], TextUnit]) -> None:
    other = change(text)
    assert protocol(other.documents, other.source) != protocol(text.documents, text.source)
    assert key(other) != key(text)


def test_the_content_of_a_text_counts_and_its_place_does_not(text: TextUnit, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert key(unit_of(tmp_path / "elsewhere/text.jsonl", "one")) == key(text)
    assert key(unit_of(tmp_path / "elsewhere/text.jsonl", "two")) != key(text)


def test_the_split_and_commit_of_a_hub_text_are_stamped(text: TextUnit) -> None:
    hub = replace(text.documents, files=(), commit="0123456789abcdef")
    said = {
        protocol(replace(hub, commit=commit), PerplexitySource(path="org/data", split=split))
        for commit in ("0123456789abcdef", "fedcba9876543210")
        for split in ("test", "validation")
    }
    assert len(said) == 4


def test_model_and_dtype_count(text: TextUnit) -> None:
    assert len({key(text), key(text, MODEL.view(keeping((0, 1)))), key(text, dtype="bfloat16")}) == 3


def test_the_dtype_is_in_the_protocol(text: TextUnit, local_store: Store) -> None:
    score = text.join([TextLosses(nll=np.ones(3, np.float32), documents=np.zeros(3, np.int64))])
    of_text = protocol(text.documents, text.source)
    for dtype in ("float32", "bfloat16"):
        assert store_score(MODEL, text, score, local_store, dtype).protocol == f"{of_text}, {dtype}"
        stored = read_score(MODEL, text, local_store, dtype)
        assert stored is not None
        assert stored.protocol == f"{of_text}, {dtype}"


def test_a_score_carries_its_unit_whichever_model_it_is_of(text: TextUnit, tmp_path: Path, local_store: Store) -> None:
    losses = TextLosses(nll=np.ones(3, np.float32), documents=np.zeros(3, np.int64))

    def unit(unit: TextUnit, model: ModelRef = MODEL, dtype: str = "float32") -> str:
        return store_score(model, unit, unit.join([losses]), local_store, dtype).unit

    assert unit(text) == unit(text, MODEL.view(keeping((0, 1)))) == unit_fingerprint(text, "float32")
    other = unit_of(tmp_path / "text.jsonl", "two")
    assert len({unit(text), unit(text, dtype="bfloat16"), unit(other)}) == 3


def test_texts_of_one_name_are_told_apart(text: TextUnit, tmp_path: Path) -> None:
    names = {unit_of(tmp_path / "text.jsonl", "one", segment_length=length).name for length in (64, 128)}
    assert len(names) == 2


def test_the_dense_model_of_an_agreement_counts(text: TextUnit) -> None:
    units = [
        AgreementUnit(documents=text.documents, source=text.source, dense=dense)
        for dense in (MODEL, replace(MODEL, fingerprint="other"))
    ]
    assert len({key(unit) for unit in units}) == 2


@pytest.mark.parametrize("change", [{"num_fewshot": 5}, {"limit": 3}, {"task": "openbookqa"}])
def test_each_option_of_a_task_counts(change: dict) -> None:
    def unit(options: dict) -> TaskUnit:
        return TaskUnit(config=TaskConfig(**({"task": "piqa"} | options)), directory=None, limit=None)

    assert key(unit(change)) != key(unit({}))


def test_speed_is_never_read_back(local_store: Store) -> None:
    """It is of a machine, which no identity knows."""
    unit = EfficiencyUnit(settings=EfficiencyConfig(), dense=MODEL)
    of_model = Footprint(weight_bytes=1, kv_bytes_per_token=1, flops_per_token=1)
    score = EfficiencyScore(unit="", protocol="", points=(), dense=of_model, model=of_model)
    local_store.write("evaluations", key(unit), score, identity={}, parents=())
    assert read_score(MODEL, unit, local_store, "float32") is None
