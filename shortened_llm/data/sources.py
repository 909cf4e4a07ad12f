"""Documents of a text source, and their split between purposes."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi

from shortened_llm.config import SearchConfig, TextSource
from shortened_llm.errors import BadInputError
from shortened_llm.storage.urls import content_key, expand_glob, is_local

Purpose = Literal["train", "selection", "report"]

# Bounds of a document's hash, in 0..1, for each purpose of a source that serves several.
REPORT_BELOW = 0.05
SELECTION_BELOW = 0.10

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


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
        source = self.source
        pinned: dict[str, object] = (
            {"files": [content_key(file) for file in self.files]}
            if self.files
            else {"hub": source.path, "name": source.name, "commit": self.commit, "split": source.split}
        )
        return pinned | {"field": source.field, "part": self.purpose if self.shared_with else "all"}

    @property
    def part(self) -> str:
        """In words, which documents these are."""
        return f"{self.purpose} part" if self.shared_with else "all documents"

    def rows(self) -> Iterator[str | list[int]]:
        """Each document: a text, or token ids where the source has a column `input_ids`. Read as they are asked for.

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
                source.path, source.name, split=source.split, revision=self.commit, streaming=True
            )
        kind = FORMATS[_suffix(self.files[0])]
        options = {"sample_by": "paragraph"} if kind == "text" else {}
        return datasets.load_dataset(kind, data_files=list(self.files), split="train", streaming=True, **options)

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


def text_roles(config: SearchConfig) -> TextRoles:
    """Find every source, and split those that serve several purposes.

    Raises:
        BadInputError: a file does not exist or has an unknown ending, or the hub does not know a data set.
    """
    named: list[tuple[str, Purpose, TextSource]] = [("calibration", "train", config.calibration)]
    named += [(f"retraining.data.{i}", "train", source) for i, source in enumerate(config.retraining.data)]
    selection, report = config.evaluation.selection.perplexity, config.evaluation.report.perplexity
    named += [(f"evaluation.selection.perplexity.{i}", "selection", source) for i, source in enumerate(selection)]
    named += [(f"evaluation.report.perplexity.{i}", "report", source) for i, source in enumerate(report)]
    files = [find_files(source.path, field) for field, _, source in named]
    places = [
        frozenset(found or [f"hub:{source.path}:{source.name}:{source.split}"])
        for found, (_, _, source) in zip(files, named, strict=True)
    ]
    documents = []
    for index, (field, purpose, source) in enumerate(named):
        others = {other for place, (_, other, _) in zip(places, named, strict=True) if place & places[index]}
        documents.append(
            Documents(
                source=source,
                purpose=purpose,
                shared_with=tuple(sorted(others - {purpose})),
                files=files[index],
                commit=None if files[index] else _commit(source, field),
                field_path=field,
            )
        )
    return TextRoles(
        calibration=documents[0],
        train=tuple(d for d in documents[1:] if d.purpose == "train"),
        selection=tuple(d for d in documents if d.purpose == "selection"),
        report=tuple(d for d in documents if d.purpose == "report"),
    )


def find_files(path: str, field_path: str) -> tuple[str, ...]:
    """The files that a source's path names, as absolute paths or URLs; empty where it is the id of a hub data set.

    Raises:
        BadInputError: it names files, but there are none, or their ending is unknown.
    """
    local = is_local(path)
    looks_like_an_id = local and path.count("/") <= 1 and not path.startswith((".", "/"))
    if looks_like_an_id and _suffix(path) not in FORMATS and not Path(path).exists():
        return ()
    if local and Path(path).is_dir():
        raise BadInputError(f"{field_path}.path: {path!r} is a directory; name its files, such as {path}/*.jsonl")
    found = expand_glob(path)
    if not found:
        raise BadInputError(f"{field_path}.path: {path!r} does not exist (the demo's texts: `python -m jobs.assets`)")
    unknown = sorted({_suffix(file) for file in found} - FORMATS.keys())
    if unknown:
        raise BadInputError(
            f"{field_path}.path: {path!r} ends in {unknown[0]!r}; known are {', '.join(FORMATS)}, also compressed"
        )
    return tuple(str(Path(file).resolve()) for file in found) if local else tuple(found)


def _suffix(path: str) -> str:
    """The ending that tells the format, such as `.jsonl` of `a.jsonl.gz`."""
    name = Path(path)
    return name.with_suffix("").suffix if name.suffix in COMPRESSIONS else name.suffix


def _commit(source: TextSource, field_path: str) -> str:
    """The commit that pins a hub data set."""
    try:
        return str(HfApi().dataset_info(source.path, revision=source.revision).sha)
    except Exception as error:  # the hub client raises errors of several libraries
        lines = str(error).strip().splitlines()
        raise BadInputError(
            f"{field_path}.path: {source.path!r} is no file, and the hub does not give it as a data set "
            f"({lines[0] if lines else type(error).__name__})"
        ) from None
