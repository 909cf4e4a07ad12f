"""Documents of a text source, and their split between purposes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from shortened_llm.config import ExperimentConfig, TextSource, entry_paths
from shortened_llm.data.instructions import InstructionPairs
from shortened_llm.data.readers import BadRow, Row, as_text, no_column
from shortened_llm.data.rows import Rows
from shortened_llm.errors import BadInputError, Faults, brief

Purpose = Literal["train", "selection", "report"]

# Bounds of a document's hash, in 0..1, for each purpose of a source that training shares with others.
REPORT_BELOW = 0.05
SELECTION_BELOW = 0.10


Document = str | list[int] | BadRow | None
"""A text, token ids, a row that is neither, or one that serves another purpose."""


@dataclass(frozen=True, kw_only=True)
class Documents(Rows):
    """The documents of one source that serve one purpose."""

    source: TextSource
    purpose: Purpose
    shared_with: tuple[Purpose, ...]
    """Other purposes that the source serves too; where there are any, only a part of its documents is ours."""

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines these documents: their content, wherever it lies."""
        return self.content | {
            "field": self.source.field,
            "part": f"half for {self.purpose}" if self._is_half else self.purpose if self.shared_with else "all",
        }

    @property
    def _is_half(self) -> bool:
        """Whether selection and report have the source for themselves."""
        return {self.purpose, *self.shared_with} == {"selection", "report"}

    @property
    def part(self) -> str:
        """In words, which documents these are."""
        return f"{self.purpose} part" if self.shared_with else "all documents"

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[Document]:
        """Read documents, see `Rows.read`: texts, or token ids where the source has a column `input_ids`. Those that
        serve another purpose are not wanted."""
        for row in self._values(shard, ("input_ids", self.source.field), first, count):
            value = self._value(row)
            yield value if isinstance(value, BadRow) or self._is_ours(value) else None

    def _value(self, row: Row) -> str | list[int] | BadRow:
        if isinstance(row, BadRow):
            return row
        column = "input_ids" if "input_ids" in row else self.source.field
        if column not in row:
            return no_column(column, f"{self.field_path}.field", row)
        value = row[column]
        if column == "input_ids":
            if isinstance(value, list) and all(isinstance(token, int) for token in value):
                return value
        elif isinstance(value, (str, bytes)):
            return as_text(value, column)
        return BadRow(f"has {column} {brief(repr(value))}")

    def _is_ours(self, document: str | list[int]) -> bool:
        if not self.shared_with:
            return True
        place = _hash_fraction(document)
        if self._is_half:
            return self.purpose == ("report" if place < 0.5 else "selection")
        if place < REPORT_BELOW:
            return self.purpose == "report"
        if place < SELECTION_BELOW:
            return self.purpose == "selection"
        return self.purpose == "train"


def _hash_fraction(document: str | list[int]) -> float:
    """A number in 0..1 that depends on the document alone: equal documents fall into the same part."""
    content = document if isinstance(document, str) else repr(document)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRoles:
    """Which documents serve which purpose in an experiment; no document serves two."""

    calibration: tuple[Documents, ...]
    """One for each calibration, where a criterion reads text."""
    train: tuple[Documents, ...]
    selection: tuple[Documents, ...]
    report: tuple[Documents, ...]
    agreement: tuple[Documents, ...]
    instructions: InstructionPairs | None
    """Where a method of the experiment trains on them."""


def text_roles(config: ExperimentConfig) -> TextRoles:
    """Find every source, and split those that serve several purposes.

    Raises:
        BadInputError: a file does not exist or has an unknown ending, or the hub does not know a data set.
    """
    named: list[tuple[str, Purpose, TextSource]] = []
    if config.reads_calibration:
        paths = entry_paths("calibration", config.calibrations)
        named += [(path, "train", source) for path, source in zip(paths, config.calibrations, strict=True)]
    num_calibrations = len(named)
    retraining = config.retraining
    named += [(f"retraining.data.{i}", "train", source) for i, source in enumerate(retraining.data)]
    selection, report = config.evaluation.selection.perplexity, config.evaluation.report.perplexity
    named += [(f"evaluation.selection.perplexity.{i}", "selection", source) for i, source in enumerate(selection)]
    named += [(f"evaluation.report.perplexity.{i}", "report", source) for i, source in enumerate(report)]
    agreement = config.evaluation.report.agreement
    named += [(f"evaluation.report.agreement.{i}", "report", source) for i, source in enumerate(agreement)]
    faults, found = Faults(), []
    for field, _, source in named:
        with faults.gather():
            found.append(Rows.find(source, field))
    faults.raise_any()
    documents = []
    for index, (field, purpose, source) in enumerate(named):
        others = {other for rows, (_, other, _) in zip(found, named, strict=True) if rows.places & found[index].places}
        documents.append(
            Documents(
                source=source,
                purpose=purpose,
                shared_with=tuple(sorted(others - {purpose})),
                files=found[index].files,
                commit=found[index].commit,
                field_path=field,
            )
        )
    instructions = (
        InstructionPairs.find(retraining.instructions, "retraining.instructions")
        if retraining.uses_instructions and retraining.instructions is not None
        else None
    )
    for document in documents:
        if instructions and document.purpose != "train" and set(document.files) & set(instructions.files):
            raise BadInputError(
                f"{document.field_path}.path: {document.source.path!r} is also retraining.instructions, which are not "
                "split; evaluate on another text"
            )
    reported = tuple(d for d in documents if d.purpose == "report")
    return TextRoles(
        calibration=tuple(documents[:num_calibrations]),
        train=tuple(d for d in documents[num_calibrations:] if d.purpose == "train"),
        selection=tuple(d for d in documents if d.purpose == "selection"),
        report=reported[: len(report)],
        agreement=reported[len(report) :],
        instructions=instructions,
    )
