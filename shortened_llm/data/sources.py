"""Documents of a text source, and their split between purposes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from shortened_llm.config import SearchConfig, TextSource
from shortened_llm.data.instructions import InstructionPairs
from shortened_llm.data.rows import Rows
from shortened_llm.errors import BadInputError

Purpose = Literal["train", "selection", "report"]

# Bounds of a document's hash, in 0..1, for each purpose of a source that serves several.
REPORT_BELOW = 0.05
SELECTION_BELOW = 0.10


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents of one source that serve one purpose."""

    source: TextSource
    purpose: Purpose
    shared_with: tuple[Purpose, ...]
    """Other purposes that the source serves too; where there are any, only a part of its documents is ours."""
    files: tuple[str, ...]
    """Absolute paths or URLs; empty for a hub data set."""
    commit: str | None
    """Of a hub data set."""
    field_path: str
    """Where the source stands in the config, for messages."""

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines these documents: their content, wherever it lies."""
        return self._rows.identity | {
            "field": self.source.field,
            "part": self.purpose if self.shared_with else "all",
        }

    @property
    def part(self) -> str:
        """In words, which documents these are."""
        return f"{self.purpose} part" if self.shared_with else "all documents"

    @property
    def num_shards(self) -> int:
        """Parts that can be read apart from one another: files."""
        return self._rows.num_shards

    def rows(self) -> Iterator[str | list[int]]:
        """Each document: a text, or token ids where the source has a column `input_ids`. Read as they are asked for.

        Raises:
            BadInputError: the source cannot be read, has no such column, or a document is no text.
        """
        for shard in range(self.num_shards):
            for document in self.read(shard):
                if document is not None:
                    yield document

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[str | list[int] | None]:
        """Rows `first` to `first + count` of a shard, or all from `first` on, as `rows` gives them; None in place of a
        document that serves another purpose."""
        for index, row in enumerate(self._rows.read(shard, first=first, count=count), start=first):
            value = self._value(row, shard, index)
            yield value if self._is_ours(value) else None

    @cached_property
    def _rows(self) -> Rows:
        return Rows(source=self.source, files=self.files, commit=self.commit, field_path=self.field_path)

    def _value(self, row: dict[str, object], shard: int, index: int) -> str | list[int]:
        column = "input_ids" if "input_ids" in row else self.source.field
        if column not in row:
            raise BadInputError(
                f"{self.field_path}.field: {self.source.path!r} has no column {column!r}; it has {', '.join(row)}"
            )
        value = row[column]
        if isinstance(value, str) and column != "input_ids":
            return value
        if isinstance(value, list) and column == "input_ids" and all(isinstance(token, int) for token in value):
            return value
        raise BadInputError(f"{self.field_path}: row {index} of {self._rows.name_of(shard)} has {column} {value!r}")

    def _is_ours(self, document: str | list[int]) -> bool:
        if not self.shared_with:
            return True
        place = _hash_fraction(document)
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

    calibration: Documents
    train: tuple[Documents, ...]
    selection: tuple[Documents, ...]
    report: tuple[Documents, ...]
    agreement: tuple[Documents, ...]
    instructions: InstructionPairs | None
    """Where a method of the experiment trains on them."""


def text_roles(config: SearchConfig) -> TextRoles:
    """Find every source, and split those that serve several purposes.

    Raises:
        BadInputError: a file does not exist or has an unknown ending, or the hub does not know a data set.
    """
    named: list[tuple[str, Purpose, TextSource]] = [("calibration", "train", config.calibration)]
    retraining = config.retraining
    named += [(f"retraining.data.{i}", "train", source) for i, source in enumerate(retraining.data)]
    selection, report = config.evaluation.selection.perplexity, config.evaluation.report.perplexity
    named += [(f"evaluation.selection.perplexity.{i}", "selection", source) for i, source in enumerate(selection)]
    named += [(f"evaluation.report.perplexity.{i}", "report", source) for i, source in enumerate(report)]
    agreement = config.evaluation.report.agreement
    named += [(f"evaluation.report.agreement.{i}", "report", source) for i, source in enumerate(agreement)]
    found = [Rows.find(source, field) for field, _, source in named]
    places = [
        frozenset(rows.files or [f"hub:{source.path}:{source.name}:{source.split}"])
        for rows, (_, _, source) in zip(found, named, strict=True)
    ]
    documents = []
    for index, (field, purpose, source) in enumerate(named):
        others = {other for place, (_, other, _) in zip(places, named, strict=True) if place & places[index]}
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
        calibration=documents[0],
        train=tuple(d for d in documents[1:] if d.purpose == "train"),
        selection=tuple(d for d in documents if d.purpose == "selection"),
        report=reported[: len(report)],
        agreement=reported[len(report) :],
        instructions=instructions,
    )
