"""Sources for the tests of this directory."""

import json
from pathlib import Path

from shortened_llm.config import InstructionsConfig, TextSource
from shortened_llm.data.instructions import InstructionPairs
from shortened_llm.data.packing import PackingJob
from shortened_llm.data.sources import Documents

VOCAB_SIZE = 300
"""A little more than the tiny model's tokenizer knows."""


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def documents(*files: str) -> Documents:
    """All documents of some files."""
    return Documents(
        source=TextSource(path=files[0]),
        purpose="train",
        shared_with=(),
        files=files,
        commit=None,
        field_path="retraining.data.0",
    )


def corpus(directory: Path, rows: list[dict], name: str = "corpus") -> Documents:
    """All documents of a file of the given rows."""
    return documents(write_rows(directory / f"{name}.jsonl", rows))


def instruction_pairs(directory: Path, rows: list[dict], **options: object) -> InstructionPairs:
    """Instruction data of the given rows."""
    path = write_rows(directory / "pairs.jsonl", rows)
    return InstructionPairs.find(InstructionsConfig(path=path, **options), "retraining.instructions")  # type: ignore[arg-type]


def packing_job(
    source: Documents | InstructionPairs, length: int, at_most: int | None = None, **options: object
) -> PackingJob:
    values = {"tokenizer_identity": "tiny", "vocab_size": VOCAB_SIZE} | options
    return PackingJob(source=source, sequence_length=length, at_most=at_most, **values)  # type: ignore[arg-type]
