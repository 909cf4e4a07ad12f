"""Fixtures of the tests of data."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from shortened_llm.models.directory import load_tokenizer


@pytest.fixture
def tokenizer(tiny_assets: Path) -> PreTrainedTokenizerBase:
    """Of the tiny model: a token is a byte, 256 ends a text."""
    return load_tokenizer(tiny_assets / "model")
