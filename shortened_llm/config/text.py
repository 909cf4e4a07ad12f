"""Sources of text: documents, calibration, instructions, training data."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from shortened_llm.config.base import Url
from shortened_llm.fields import Section


class DataSource(Section):
    """Rows of files, or of a hub data set."""

    path: Url
    """JSONL or Parquet file (a glob or URL too), or a hub data set id."""
    name: str | None = None
    """Configuration of a hub data set, such as wikitext-2-raw-v1."""
    revision: str | None = None
    """Revision of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    license: str | None = None
    """Licence of the data, such as cc-by-nc-4.0, to be stated with every model trained on it."""
    max_bad_rows: float = Field(0.01, ge=0, lt=1)
    """Share of the rows that may be unusable: without the column, of another type, damaged. They are left out, and
    counted in log and report; a source with more of them is refused."""


class TextSource(DataSource):
    """Documents. A source that serves several purposes is split by document: 5 % selection, 5 % report, the rest for
    training and calibration; in halves where it is for selection and report alone."""

    path: Url
    """JSONL, Parquet or text file (a glob or URL too), or a hub data set id. In a text file, documents are separated
    by blank lines."""
    field: str = "text"
    """Column that holds the text. A column `input_ids` is taken as tokens instead where it exists."""

    @property
    def label(self) -> str:
        """A short name for tables: the file's stem, or the data set's id."""
        is_file = re.search(r"\.(jsonl|ndjson|json|parquet|txt)(\.(gz|zst|xz|bz2))?$", self.path)
        label = Path(self.path).name[: -len(is_file[0])] if is_file else self.path
        return f"{label}/{self.name}" if self.name else label


class CalibrationConfig(TextSource):
    """Text that blocks are scored on."""

    num_sequences: int = Field(10, ge=1)
    """Sequences (count)."""
    sequence_length: int = Field(128, ge=2)
    """Length of each sequence (tokens)."""
    seed: int = Field(1234, ge=0)
    """Draws the documents; rows of token ids are taken in their order."""
    bos: Literal["auto", "each", "none"] = "auto"
    """each: a beginning-of-text token replaces the first token of every sequence; none: sequences as they are; auto:
    each for families that are lost without it (Gemma), else none. Rows of token ids are used as they are."""


class InstructionsConfig(DataSource):
    """Pairs of a prompt and a response; the loss is on the response alone."""

    template: Literal["alpaca", "chat"] = "alpaca"
    """alpaca: the template of Stanford Alpaca; chat: the tokenizer's own chat template."""
    instruction_field: str = "instruction"
    """Column of the instruction."""
    input_field: str = "input"
    """Column of further input to an instruction; it may be empty or absent."""
    response_field: str = "output"
    """Column of the response."""
    max_length: int = Field(256, ge=8)
    """Longer pairs are cut at this length (tokens)."""
    global_batch_size: int = Field(64, ge=1)
    """Pairs per optimiser step, over all workers."""
    epochs: float = Field(2.0, gt=0)
    """Passes over the pairs; a fraction is allowed."""


class TrainingSource(TextSource):
    """Documents to train on."""

    weight: float | None = Field(None, gt=0)
    """Share of the training sequences from this source, relative to the other weights. Unless given, all sequences that
    are read are equally likely: of each source corpus_tokens, or the largest budget, or 16.8 M tokens if that is
    more."""
