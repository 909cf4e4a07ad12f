"""Families that need a beginning-of-text token on every sequence."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from shortened_llm.config import PerplexitySource
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.perplexity import check_bos
from shortened_llm.models.families import NEEDS_BOS, needs_bos
from tests.models.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_only_gemma_needs_one_unasked(family: str) -> None:
    model_type = FAMILIES[family].model_type
    assert needs_bos("auto", model_type) == family.startswith("gemma")
    assert needs_bos("each", model_type)
    assert not needs_bos("none", model_type)


def test_the_families_exist() -> None:
    from transformers import CONFIG_MAPPING

    assert set(CONFIG_MAPPING) >= NEEDS_BOS


@pytest.mark.parametrize(
    ("bos", "model_type", "warned"),
    [
        ("first", "gemma2", True),
        ("none", "gemma3_text", True),
        ("each", "gemma2", False),
        ("first", "llama", False),
        ("first", None, False),
    ],
)
def test_a_protocol_that_does_not_suit_the_family_is_warned_of(
    bos: str, model_type: str | None, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = PerplexitySource(path=str(tmp_path / "a.txt"), bos=bos)  # type: ignore[arg-type]
    documents = Documents(
        source=source, purpose="report", shared_with=(), files=(), commit=None, field_path="evaluation.report.0"
    )
    tokenizer = SimpleNamespace(bos_token_id=2)
    with caplog.at_level(logging.WARNING, logger="shortened_llm"):
        check_bos(documents, source, tokenizer, model_type=model_type)  # type: ignore[arg-type]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == warned
    assert all(f"evaluation.report.0.bos: is {bos!r}" in line and "set each" in line for line in lines)
