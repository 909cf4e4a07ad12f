"""Directories of files: hashed, uploaded, and brought back to a node."""

import contextlib
import fnmatch
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock, Timeout

from shortened_llm.fingerprint import file_sha256, fingerprint
from shortened_llm.records import FileEntry, Payload
from shortened_llm.storage.urls import download_file, file_sizes, filesystem, is_local, join, upload_file

ALL_FILES = ("*",)
COPY = re.compile(r"[0-9a-f]{16}(\.partial)?")
"""Names of copies, in a directory where other things may lie."""
IDLE_SECONDS = 3600
"""A copy that was used later than that may be in use."""


def describe_file(path: Path) -> FileEntry:
    """Name, size and SHA-256 of a file."""
    return FileEntry(path=path.name, num_bytes=path.stat().st_size, sha256=file_sha256(path))


def describe_files(directory: Path, patterns: tuple[str, ...] = ALL_FILES) -> tuple[FileEntry, ...]:
    """The files directly in `directory` that match a pattern, by name."""
    paths = sorted(path for path in directory.iterdir() if path.is_file() and _matches(path.name, patterns))
    with ThreadPoolExecutor(4) as threads:
        return tuple(threads.map(describe_file, paths))


def upload(path: Path, url: str) -> FileEntry:
    """Copy a file into `url`; returns what was copied."""
    entry = describe_file(path)
    upload_file(path, join(url, entry.path))
    return entry


def upload_directory(directory: Path, url: str, patterns: tuple[str, ...] = ALL_FILES) -> tuple[FileEntry, ...]:
    """Copy the matching files of `directory` to `url`; returns what was copied."""
    files = describe_files(directory, patterns)
    for entry in files:
        upload_file(directory / entry.path, join(url, entry.path))
    return files


def download_directory(url: str, directory: Path, patterns: tuple[str, ...] = ALL_FILES) -> Path:
    """Copy the matching files directly below `url` into `directory`; returns `directory`."""
    for name in file_sizes(url):  # hidden ones too, as an upload takes them
        if _matches(name, patterns):
            download_file(join(url, name), directory / name)
    return directory


def cache_directory() -> Path:
    """Where this node keeps copies of remote files: $SHORTENED_LLM_CACHE or ~/.cache/shortened_llm/files."""
    return Path(os.environ.get("SHORTENED_LLM_CACHE", "~/.cache/shortened_llm/files")).expanduser()


def local_directory(url: str, files: tuple[FileEntry, ...]) -> Path:
    """A directory of this node that holds `files` of `url`: itself where it is local, else a cached copy, for which
    idle ones go where the disk is full.

    Raises:
        FileNotFoundError: a file is gone from the store.
        OSError: a file is not the one of its record.
    """
    if is_local(url):
        directory = Path(filesystem(url)[1])
        for entry in files:
            size = (directory / entry.path).stat().st_size
            if size != entry.num_bytes:
                raise OSError(f"{directory / entry.path} has {size} bytes, its record says {entry.num_bytes}")
        return directory
    final = cache_directory() / fingerprint({"files": files})
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):  # the processes of a node share one download
        if final.is_dir():
            use(final)
            return final
        partial = final.with_name(f"{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _make_room(final.parent, sum(entry.num_bytes for entry in files))
        try:
            download_files(url, files, partial)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(final)
    return final


def use(directory: Path) -> None:
    """Note that a copy is in use, so that it is not taken away; a directory that is no copy stays as it is."""
    if directory.parent == cache_directory():
        with contextlib.suppress(FileNotFoundError):
            os.utime(directory)


def _make_room(cache: Path, num_bytes: int) -> None:
    """Remove copies of models, that which was used longest ago first, until `num_bytes` more fit or none is idle."""
    copies: list[tuple[float, Path]] = []
    for path in filter(lambda path: COPY.fullmatch(path.name), cache.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # others come and go
            copies += [(path.stat().st_mtime, path)] if any(path.glob("*.safetensors")) else []
    for used, copy in sorted(copies):
        if shutil.disk_usage(cache).free >= num_bytes or time.time() - used < IDLE_SECONDS:
            return
        with contextlib.suppress(Timeout), FileLock(copy.with_suffix(".lock"), timeout=0):  # of a partial one too
            shutil.rmtree(copy, ignore_errors=True)


def download_files(url: str, files: tuple[FileEntry, ...], directory: Path) -> None:
    """Copy `files` of `url`, local or not, into `directory`.

    Raises:
        FileNotFoundError: a file is gone from the store.
        OSError: a file does not have the hash of its record.
    """
    for entry in files:
        target = download_file(join(url, entry.path), directory / entry.path)
        if file_sha256(target) != entry.sha256:
            raise OSError(f"{join(url, entry.path)} does not have the hash of its record")


def has_files(payload: Payload) -> bool:
    """Whether all files are still there, of the sizes in their record."""
    sizes = file_sizes(payload.url) if payload.files else {}
    return all(sizes.get(entry.path) == entry.num_bytes for entry in payload.files)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
