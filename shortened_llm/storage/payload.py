"""Directories of files: hashed, uploaded, and brought back to a node."""

import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shortened_llm.fingerprint import file_sha256
from shortened_llm.records import FileEntry
from shortened_llm.storage.urls import filesystem, is_local, join


def describe_files(directory: Path) -> tuple[FileEntry, ...]:
    """Name, size and SHA-256 of every file below `directory`, by name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as threads:
        hashes = list(threads.map(file_sha256, paths))
    return tuple(
        FileEntry(path=path.relative_to(directory).as_posix(), num_bytes=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, hashes, strict=True)
    )


def upload_directory(directory: Path, url: str) -> tuple[FileEntry, ...]:
    """Copy every file of `directory` to `url`; returns what was copied."""
    files = describe_files(directory)
    fs, root = filesystem(url)
    for entry in files:
        target = f"{root}/{entry.path}"
        if is_local(url):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        fs.put_file(str(directory / entry.path), target)
    return files


def cache_directory() -> Path:
    """Where this node keeps copies of remote files: $SHORTENED_LLM_CACHE or ~/.cache/shortened_llm/files."""
    return Path(os.environ.get("SHORTENED_LLM_CACHE", "~/.cache/shortened_llm/files")).expanduser()


def local_directory(url: str, fingerprint: str, files: tuple[FileEntry, ...]) -> Path:
    """A directory of this node that holds `files` of `url`: itself where it is local, else a cached copy.

    Raises:
        FileNotFoundError: a file is gone from the store.
        OSError: a file's size differs from its record.
    """
    if is_local(url):
        directory = Path(filesystem(url)[1])
        for entry in files:
            size = (directory / entry.path).stat().st_size
            if size != entry.num_bytes:
                raise OSError(f"{directory / entry.path} has {size} bytes, its record says {entry.num_bytes}")
        return directory
    final = cache_directory() / fingerprint
    if final.is_dir():
        return final
    partial = final.with_name(f"{final.name}.{secrets.token_hex(4)}.partial")
    try:
        fs, root = filesystem(url)
        for entry in files:
            target = partial / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{root}/{entry.path}", str(target))
            if file_sha256(target) != entry.sha256:
                raise OSError(f"{join(url, entry.path)} does not have the hash of its record")
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final
