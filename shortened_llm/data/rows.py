"""Rows of files and of hub data sets, streamed; a source is read in shards, and a shard from any row on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi

from shortened_llm.config import DataSource
from shortened_llm.data.readers import READERS, BadRow, Row
from shortened_llm.errors import BadInputError, UnreachableError, brief
from shortened_llm.logs import LOGGER
from shortened_llm.storage.retry import is_transient
from shortened_llm.storage.urls import content_key, expand_glob, is_local, reached

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
ENOUGH_BAD_ROWS = 100
"""Where so many come first, a source that may not have them is not read to its end."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one source; a subclass says what they are read as."""

    source: DataSource
    files: tuple[str, ...]
    """Absolute paths or URLs; empty for a hub data set."""
    commit: str | None
    """Commit of a hub data set."""
    field_path: str
    """Where the source stands in the config, for messages."""

    @classmethod
    def find(cls, source: DataSource, field_path: str) -> Self:
        """The files or the pinned hub data set behind a source.

        Raises:
            BadInputError: a file does not exist or has an unknown ending, or the hub does not know the data set.
        """
        files = find_files(source.path, field_path)
        commit = None if files else _commit(source, field_path)
        return cls(source=source, files=files, commit=commit, field_path=field_path)

    @property
    def places(self) -> frozenset[str]:
        """Where the rows lie, however the source is written."""
        return frozenset(self.files or (f"hub:{self.source.path}:{self.source.name}:{self.source.split}",))

    @cached_property
    def content(self) -> dict[str, object]:
        """What determines the rows, wherever they lie."""
        if self.files:
            found: dict[str, object] = {"files": [content_key(file) for file in self.files]}
            # Paragraphs were once cut at other places.
            return found | {"paragraphs": 2} if any(_suffix(file) == ".txt" for file in self.files) else found
        return {"hub": self.source.path, "name": self.source.name, "commit": self.commit, "split": self.source.split}

    @cached_property
    def num_shards(self) -> int:
        """Parts that can be read apart from one another: files.

        Raises:
            BadInputError: the source cannot be read.
        """
        if self.files:
            return len(self.files)
        try:
            return int(self._hub_stream().num_shards)
        except Exception as error:
            raise self._unreadable(error) from None

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[Any]:
        """Rows `first` to `first + count` of a shard, or all from `first` on, read as they are asked for: what a row
        is read as, a `BadRow`, or None in place of one that is not wanted.

        Raises:
            BadInputError: the source cannot be read.
        """
        raise NotImplementedError

    def usable(self, tally: "Tally | None" = None) -> Iterator[Any]:
        """What every row is read as, but for bad ones and those that are not wanted.

        Args:
            tally: counts the rows, for who wants to know.

        Raises:
            BadInputError: the source cannot be read, or more of its rows than are allowed are bad.
        """
        counted = tally or Tally(self)
        for shard in range(self.num_shards):
            for index, row in enumerate(self.read(shard)):
                counted.take(row, shard, index)
                counted.check_beginning()
                if row is not None and not isinstance(row, BadRow):
                    yield row
        counted.finish()

    def _values(self, shard: int, columns: Sequence[str], first: int, count: int | None) -> Iterator[Row]:
        """Rows by column, see `read`.

        Args:
            columns: those that are wanted; a row has what it holds of them, and may have others.
        """
        try:
            if self.files:
                read = READERS[_suffix(self.files[shard])]
                rows = read(self.files[shard], columns, first)
            else:
                rows = self._hub_rows(shard, columns, first)
            yield from rows if count is None else islice(rows, count)
        except Exception as error:  # of the libraries of each format, and of the storage
            raise self._unreadable(error, self.name_of(shard)) from None

    def name_of(self, shard: int) -> str:
        """A shard's name in messages."""
        several = len(self.files) > 1
        return repr(self.files[shard]) if several else repr(self.source.path)

    def _hub_stream(self):  # type: ignore[no-untyped-def]  # of datasets
        import datasets  # 2 s, and only hub data sets need it

        source = self.source
        return datasets.load_dataset(source.path, source.name, split=source.split, revision=self.commit, streaming=True)

    def _hub_rows(self, shard: int, columns: Sequence[str], first: int) -> Iterator[Row]:
        stream = self._hub_stream()
        stream = stream.shard(num_shards=stream.num_shards, index=shard)
        if asked := [column for column in columns if column in (stream.column_names or ())]:
            stream = stream.select_columns(asked)
        yield from stream.skip(first) if first else stream

    def _unreadable(self, error: Exception, name: str | None = None) -> BadInputError:
        passes = is_transient(error) or (error.__cause__ is not None and is_transient(error.__cause__))
        return (UnreachableError if passes else BadInputError)(
            f"{self.field_path}.path: {name or repr(self.source.path)} cannot be read as documents ({brief(error)}); "
            "give a JSONL, Parquet or text file in UTF-8, or the id of a hub data set that needs no code of its own"
        )


class Tally:
    """Counts the rows of a source that could not be used, and refuses one that has too many of them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.num_rows = self.num_bad = 0
        self.first_bad = ""
        """Which the first one was, and why, in words."""

    def take(self, row: object, shard: int, index: int) -> None:
        """Count a row."""
        self.num_rows += 1
        if isinstance(row, BadRow):
            self.num_bad += 1
            self.first_bad = self.first_bad or f"row {index} of {self._rows.name_of(shard)} {row.reason}"

    def add(self, num_rows: int, num_bad: int, first_bad: str) -> None:
        """Count rows that were read elsewhere."""
        self.num_rows, self.num_bad = self.num_rows + num_rows, self.num_bad + num_bad
        self.first_bad = self.first_bad or first_bad

    def check_beginning(self) -> None:
        """Raises as `check` where the first rows, many of them, are all bad."""
        if self.num_bad == self.num_rows == ENOUGH_BAD_ROWS:
            self.check()

    def check(self) -> None:
        """Raises `BadInputError` where more rows are bad than `max_bad_rows` allows."""
        allowed = self._rows.source.max_bad_rows
        if self.num_bad > allowed * self.num_rows:
            raise BadInputError(
                f"{self._rows.field_path}.path: {self.num_bad} of {self.num_rows} rows of {self._rows.source.path!r} "
                f"cannot be used: {self.first_bad}; mend them, or raise {self._rows.field_path}.max_bad_rows from "
                f"{allowed:g}"
            )

    def finish(self) -> None:
        """Check, and say in the log what was left out."""
        self.check()
        if self.num_bad:
            LOGGER.warning("%s: %s", self._rows.source.path, left_out(self.num_rows, self.num_bad, self.first_bad))


def left_out(num_rows: int, num_bad: int, first_bad: str) -> str:
    """In words, how many rows were left out and why."""
    return f"{num_bad:,} of {num_rows:,} rows cannot be used and are left out: {first_bad}"


def find_files(path: str, field_path: str) -> tuple[str, ...]:
    """The files that a source's path names, as absolute paths or URLs; empty where it is the id of a hub data set.

    Raises:
        BadInputError: it names files, but there are none, or their ending is unknown.
    """
    local = is_local(path)
    looks_like_an_id = local and path.count("/") <= 1 and not path.startswith((".", "/"))
    if looks_like_an_id and _suffix(path) not in READERS and not Path(path).exists():
        return ()
    if local and Path(path).is_dir():
        raise BadInputError(f"{field_path}.path: {path!r} is a directory; name its files, such as {path}/*.jsonl")
    with reached(f"{field_path}.path: {path!r}"):
        found = expand_glob(path)
    if not found:
        raise BadInputError(f"{field_path}.path: {path!r} does not exist (the demo's texts: `python -m jobs.assets`)")
    unknown = sorted({_suffix(file) for file in found} - READERS.keys())
    if unknown:
        raise BadInputError(
            f"{field_path}.path: {path!r} ends in {unknown[0]!r}; known are {', '.join(READERS)}, also compressed"
        )
    return tuple(str(Path(file).resolve()) for file in found) if local else tuple(found)


def _suffix(path: str) -> str:
    """The ending that tells the format, such as `.jsonl` of `a.jsonl.gz` and of `A.JSONL`."""
    name = Path(path.lower())
    return name.with_suffix("").suffix if name.suffix in COMPRESSIONS else name.suffix


def _commit(source: DataSource, field_path: str) -> str:
    """The commit that pins a hub data set."""
    try:
        return str(HfApi().dataset_info(source.path, revision=source.revision).sha)
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadInputError(
            f"{field_path}.path: {source.path!r} is no file, and no data set that the hub gives ({brief(error)})"
        ) from None
