"""Rows of files and of hub data sets, streamed; a source is read in shards, and a shard from any row on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi

from shortened_llm.config import DataSource
from shortened_llm.errors import BadInputError, UnreachableError
from shortened_llm.storage.retry import is_transient
from shortened_llm.storage.urls import content_key, expand_glob, filesystem, is_local

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one source."""

    source: DataSource
    files: tuple[str, ...]
    """Absolute paths or URLs; empty for a hub data set."""
    commit: str | None
    """Of a hub data set."""
    field_path: str
    """Where the source stands in the config, for messages."""

    @classmethod
    def find(cls, source: DataSource, field_path: str) -> "Rows":
        """The files or the pinned hub data set behind a source.

        Raises:
            BadInputError: a file does not exist or has an unknown ending, or the hub does not know the data set.
        """
        files = find_files(source.path, field_path)
        commit = None if files else _commit(source, field_path)
        return cls(source=source, files=files, commit=commit, field_path=field_path)

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines the rows: their content, wherever it lies."""
        if self.files:
            return {"files": [content_key(file) for file in self.files]}
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
            return int(self._stream(0, whole=True).num_shards)
        except Exception as error:
            raise self._unreadable(error) from None

    def read(self, shard: int, *, first: int = 0, count: int | None = None) -> Iterator[dict[str, object]]:
        """Rows `first` to `first + count` of a shard, or all from `first` on, read as they are asked for.

        Raises:
            BadInputError: the source cannot be read.
        """
        if self.files and _is_empty(self.files[shard]):
            return  # datasets fails on a file without any byte
        try:
            stream = self._stream(shard)
            stream = stream.skip(first) if first else stream
            yield from stream if count is None else stream.take(count)
        except Exception as error:  # datasets wraps every fault of a file in errors of its own
            raise self._unreadable(error) from None

    def name_of(self, shard: int) -> str:
        """A shard's name in messages."""
        several = len(self.files) > 1
        return repr(self.files[shard]) if several else repr(self.source.path)

    def _stream(self, shard: int, *, whole: bool = False):  # type: ignore[no-untyped-def]  # of datasets
        import datasets  # 2 s, and not needed to check a config

        source = self.source
        if self.files:
            kind = FORMATS[_suffix(self.files[shard])]
            options = {"sample_by": "paragraph"} if kind == "text" else {}
            return datasets.load_dataset(kind, data_files=[self.files[shard]], split="train", streaming=True, **options)
        stream = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=self.commit, streaming=True
        )
        return stream if whole else stream.shard(num_shards=stream.num_shards, index=shard)

    def _unreadable(self, error: Exception) -> BadInputError:
        lines = str(error.__cause__ or error).strip().splitlines()
        passes = is_transient(error) or (error.__cause__ is not None and is_transient(error.__cause__))
        return (UnreachableError if passes else BadInputError)(
            f"{self.field_path}.path: {self.source.path!r} cannot be read as documents "
            f"({type(error).__name__}: {lines[0] if lines else 'no reason given'}); give a JSONL, Parquet or text "
            "file, or the id of a hub data set that needs no code of its own"
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


def _is_empty(file: str) -> bool:
    fs, path = filesystem(file)
    return bool(fs.isfile(path) and fs.size(path) == 0)


def _commit(source: DataSource, field_path: str) -> str:
    """The commit that pins a hub data set."""
    try:
        return str(HfApi().dataset_info(source.path, revision=source.revision).sha)
    except Exception as error:  # the hub client raises errors of several libraries
        lines = str(error).strip().splitlines()
        raise BadInputError(
            f"{field_path}.path: {source.path!r} is no file, and the hub does not give it as a data set "
            f"({lines[0] if lines else type(error).__name__})"
        ) from None
