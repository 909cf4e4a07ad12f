"""A model with a tokenizer, and rows of token ids to calibrate on."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from jobs.assets.tiny import byte_tokenizer
from shortened_llm.config import CalibrationConfig
from shortened_llm.data.sources import Documents
from shortened_llm.records import ModelRef
from tests.conftest import reference_to

SEQUENCES, LENGTH = 12, 16


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    path = tmp_path / "rows.jsonl"
    rows = torch.randint(3, 97, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    source = CalibrationConfig(path=str(path), num_sequences=SEQUENCES, sequence_length=LENGTH)
    return Documents(
        source=source, purpose="train", shared_with=(), files=(str(path),), commit=None, field_path="calibration"
    )


def saved(model: PreTrainedModel, directory: Path) -> ModelRef:
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return reference_to(directory)
