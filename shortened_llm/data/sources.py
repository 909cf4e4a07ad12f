"""Documents of a text source, and their split between purposes."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from shortened_llm.config import SearchConfig, TextSource
from shortened_llm.errors import BadInputError
from shortened_llm.storage.urls import content_key, expand_glob, is_local

Purpose = Literal["train", "selection", "report"]

# Bounds of a document's hash, in 0..1, for each purpose of a source that serves several.
REPORT_BELOW = 0.05
SELECTION_BELOW = 0.10

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True)
class Documents:
    """The documents of one source that serve one purpose."""

    source: TextSource
    purpose: Purpose
    shared: bool
    """Whether the source also serves another purpose, so that only a part of its documents is ours."""
    field_path: str
    """Where the source stands in the config, for messages."""

    @cached_property
    def files(self) -> tuple[str, ...]:
        """URLs of the source's files; empty for a hub data set."""
        path = self.source.path
        if not is_file_path(path):
            return ()
        found = expand_glob(path)
        if not found:
            raise BadInputError(
                f"{self.field_path}.path: {path!r} does not exist (the demo's texts: `python -m jobs.assets`)"
            )
        return tuple(found)

    @property
    def identity(self) -> dict[str, object]:
        """What determines these documents."""
        source = self.source
        pinned: dict[str, object] = (
            {"files": [content_key(file) for file in self.files]}
            if self.files
            else {"hub": source.path, "name": source.name, "revision": source.revision, "split": source.split}
        )
        return pinned | {"field": source.field, "part": self.purpose if self.shared else "all"}

    @property
    def part(self) -> str:
        """In words, which documents these are."""
        return f"{self.purpose} part" if self.shared else "all documents"

    def rows(self) -> Iterator[str | list[int]]:
        """Each document: a text, or token ids where the source has a column `input_ids`.

        Raises:
            BadInputError: the source cannot be read, has no such column, or a document is no text.
        """
        try:
            for index, row in enumerate(self._load()):
                value = self._value(row, index)
                if self._is_ours(value):
                    yield value
        except BadInputError:
            raise
        except Exception as error:  # datasets wraps every fault of a file in errors of its own
            lines = str(error.__cause__ or error).strip().splitlines()
            raise BadInputError(
                f"{self.field_path}.path: {self.source.path!r} cannot be read as documents "
                f"({type(error).__name__}: {lines[0] if lines else 'no reason given'}); give a JSONL, Parquet or text "
                "file, or the id of a hub data set that needs no code of its own"
            ) from None

    def _load(self) -> Iterable[dict[str, object]]:
        import datasets  # 2 s, and not needed to check a config

        source = self.source
        if not self.files:
            return datasets.load_dataset(
                source.path, source.name, split=source.split, revision=source.revision, streaming=True
            )
        suffix = "." + self.files[0].rsplit(".", 1)[-1]
        options = {"sample_by": "paragraph"} if suffix == ".txt" else {}
        return datasets.load_dataset(
            FORMATS[suffix], data_files=list(self.files), split="train", streaming=True, **options
        )

    def _value(self, row: dict[str, object], index: int) -> str | list[int]:
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
        raise BadInputError(f"{self.field_path}: row {index} of {self.source.path!r} has {column} {value!r}")

    def _is_ours(self, document: str | list[int]) -> bool:
        if not self.shared:
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


def is_file_path(path: str) -> bool:
    """Whether a source's path names files; otherwise it is the id of a hub data set."""
    looks_like_an_id = re.fullmatch(r"[\w-]+(/[\w.-]+)?", path) is not None
    return "." + path.rsplit(".", 1)[-1] in FORMATS or not is_local(path) or not looks_like_an_id


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRoles:
    """Which documents serve which purpose in an experiment; no document serves two."""

    calibration: Documents
    train: tuple[Documents, ...]
    selection: tuple[Documents, ...]
    report: tuple[Documents, ...]


def text_roles(config: SearchConfig) -> TextRoles:
    """Split the sources that serve several purposes."""
    named: list[tuple[str, Purpose, TextSource]] = [("calibration", "train", config.calibration)]
    named += [(f"retraining.data.{i}", "train", source) for i, source in enumerate(config.retraining.data)]
    selection, report = config.evaluation.selection.perplexity, config.evaluation.report.perplexity
    named += [(f"evaluation.selection.perplexity.{i}", "selection", source) for i, source in enumerate(selection)]
    named += [(f"evaluation.report.perplexity.{i}", "report", source) for i, source in enumerate(report)]
    purposes: dict[tuple[str, ...], set[Purpose]] = {}
    for _, purpose, source in named:
        purposes.setdefault(_place(source), set()).add(purpose)
    documents = [
        Documents(source=source, purpose=purpose, shared=len(purposes[_place(source)]) > 1, field_path=path)
        for path, purpose, source in named
    ]
    return TextRoles(
        calibration=documents[0],
        train=tuple(d for d in documents[1:] if d.purpose == "train"),
        selection=tuple(d for d in documents if d.purpose == "selection"),
        report=tuple(d for d in documents if d.purpose == "report"),
    )


def _place(source: TextSource) -> tuple[str, ...]:
    """Where a source's documents lie: two fields of one file hold the same documents."""
    if is_file_path(source.path):
        return (source.path,)
    return (source.path, source.name or "", source.split)
