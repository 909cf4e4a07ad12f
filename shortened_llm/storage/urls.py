"""Directories and URLs alike, through fsspec. Faults that pass by themselves are waited for; see `retry.py`."""

import contextlib
import datetime
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from shortened_llm.credentials import CREDENTIALS_REFUSED, hidden, holds_credentials
from shortened_llm.errors import BadInputError, UnreachableError, brief, path_fault
from shortened_llm.fingerprint import file_sha256
from shortened_llm.storage.clients import fsspec_filesystem
from shortened_llm.storage.retry import retried


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def free_bytes(url: str) -> int | None:
    """What may still be written below a directory, which need not be there yet; None for any other URL."""
    if not is_local(url):
        return None
    path = Path(filesystem(url)[1])
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.is_dir())).free


def normalise(url: str) -> str:
    """An absolute path for a local directory; any other URL without its trailing slash.

    Raises:
        BadInputError: for a protocol that is unknown or whose package is not installed, and for credentials in a URL.
    """
    if holds_credentials(url):
        raise BadInputError(f"URL {hidden(url)!r}: {CREDENTIALS_REFUSED}")
    if fault := path_fault(url):
        raise BadInputError(f"{brief(url)!a} {fault}")
    if is_local(url):
        return str(Path(os.path.expanduser(url.removeprefix("file://"))).absolute())
    with reached(f"URL {hidden(url)!r}"):  # some protocols log in at once
        filesystem(url)
    return url.rstrip("/")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url`, and the path in it.

    Listings are never cached: other processes write while this one reads.
    """
    if is_local(url):
        return fsspec.filesystem("file", use_listings_cache=False), str(Path(url.removeprefix("file://")).absolute())
    try:
        return fsspec_filesystem(url)
    except (ImportError, ValueError) as error:
        protocol = url.split("://", 1)[0]
        raise BadInputError(f"URL {hidden(url)!r}: the protocol {protocol!r} cannot be used ({error})") from None


@contextlib.contextmanager
def reached(what: str) -> Iterator[None]:
    """Raises `UnreachableError` where a place that the user names cannot be asked; every protocol has its own errors.

    Args:
        what: the field and its value.
    """
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # of this machine
        raise UnreachableError(
            f"{what} cannot be read ({brief(error)}); check the address, the credentials in the environment and the "
            "permissions"
        ) from None


def join(url: str, *parts: str) -> str:
    """`url` with path components below it.

    Raises:
        BadInputError: a part leads out of `url`.
    """
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise BadInputError(f"{part!r} is no name of a place below {hidden(url)!r}")
    return "/".join([url.rstrip("/"), *parts])


@retried
def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return _type(fs, path) is not None


@retried
def is_directory(url: str) -> bool:
    fs, path = filesystem(url)
    return _type(fs, path) == "directory"


def _info(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What there is; None where there is nothing. fsspec's own `isfile` takes every fault for nothing."""
    try:
        return dict(fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _type(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """`file`, `directory`, or None where there is nothing."""
    info = _info(fs, path)
    return str(info["type"]) if info else None


@retried
def read_bytes(url: str) -> bytes:
    """The object's content; raises `FileNotFoundError` where there is none."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


@retried
def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of the object; raises `FileNotFoundError` where there is none."""
    fs, path = filesystem(url)
    if fs.async_impl or is_local(url):
        return bytes(fs.cat_file(path, start=start, end=end))
    with fs.open(path, "rb", cache_type="none") as stream:  # else the hub's reads megabytes ahead
        stream.seek(start)
        return bytes(stream.read(end - start))


@retried
def open_stream(url: str) -> IO[bytes]:
    """A file to be read from its start, unpacked where its name ends as that of a compressed one."""
    fs, path = filesystem(url)
    stream: IO[bytes] = fs.open(path, "rb", compression="infer")
    return stream


@retried
def write_bytes(url: str, content: bytes) -> None:
    """Replace the object at once: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    if not is_local(url):
        fs.pipe_file(path, content)
        return
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


@retried
def create_bytes(url: str, content: bytes) -> bool:
    """Create the object if there is none, exclusively; returns whether this call did.

    Local: a hard link of a complete file, which fails where the name exists. Elsewhere: the store's own conditional
    write, as fsspec offers it by `mode="create"`. Its answer may be lost and the write tried again, by a client too: an
    object that is there already counts as created by this call where it has the same content.

    Args:
        content: that nobody else would write, such as a name with a random part.
    """
    fs, path = filesystem(url)
    if is_local(url):
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        temporary.write_bytes(content)
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True
    try:
        fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        pass
    except OSError as error:
        # S3 answers a lost race with 412 (precondition) or 409 (conflict); s3fs maps neither to FileExistsError.
        if not any(sign in str(error) for sign in ("PreconditionFailed", "pre-conditions", "ConditionalRequest")):
            raise
    else:
        return True
    try:
        return bytes(fs.cat_file(path)) == content
    except FileNotFoundError:  # the conflict was with a write that failed, or a deletion
        raise ConnectionAbortedError(f"{url} was in conflict with another write") from None


@retried
def delete(url: str) -> None:
    """Delete an object or a whole directory; nothing there is no error."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


@retried
def modified(url: str) -> datetime.datetime:
    """When an object was last written, by the clock of its store; raises `FileNotFoundError` where there is none."""
    fs, path = filesystem(url)
    moment: datetime.datetime = fs.modified(path)
    return moment


@retried
def list_names(url: str) -> list[str]:
    """Names directly below `url`, sorted; empty where there is nothing."""
    fs, path = filesystem(url)
    try:
        entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Some S3 servers list an emptied directory as itself.
    below = (entry.rstrip("/") for entry in entries if entry.rstrip("/") != path.rstrip("/"))
    names = (entry.rsplit("/", 1)[-1] for entry in below)
    return sorted(name for name in names if not name.startswith("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file below a URL."""

    path: str
    """Relative to the URL."""
    num_bytes: int
    modified: datetime.datetime
    """By the clock of the store; now, where it keeps none."""


@retried
def find_files(url: str) -> list[StoredFile]:
    """Every file below `url`, at any depth, hidden ones too, by path; empty where there is nothing."""
    fs, path = filesystem(url)
    root = path.rstrip("/") + "/"
    entries = fs.find(path, detail=True)
    return [
        StoredFile(path=name.removeprefix(root), num_bytes=entry["size"] or 0, modified=_moment(entry))
        for name, entry in sorted(entries.items())
        if name.startswith(root)
    ]


def _moment(entry: Mapping[str, object]) -> datetime.datetime:
    """When a file was written: local file systems give seconds, S3 a moment under another name, Google's a text."""
    found = next((entry[name] for name in ("LastModified", "mtime", "updated") if name in entry), None)
    if isinstance(found, (int, float)):
        return datetime.datetime.fromtimestamp(found, datetime.UTC)
    if isinstance(found, str):
        return datetime.datetime.fromisoformat(found)
    return found if isinstance(found, datetime.datetime) else datetime.datetime.now(datetime.UTC)


@retried
def file_sizes(url: str) -> dict[str, int]:
    """Bytes of each file directly below `url`, hidden ones too; empty where there is nothing."""
    fs, path = filesystem(url)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}


@retried
def file_size(url: str) -> int | None:
    """Bytes of a file; None where there is none."""
    info = _info(*filesystem(url))
    return int(info["size"]) if info and info["type"] == "file" else None


@retried
def upload_file(source: Path, url: str) -> None:
    """Copy one file of this node; remote files above 100 MiB go in parts."""
    fs, path = filesystem(url)
    if is_local(url):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    fs.put_file(str(source), path)


@retried
def download_file(url: str, target: Path) -> Path:
    """Copy one file to this node; returns `target`."""
    fs, path = filesystem(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    fs.get_file(path, str(target))
    return target


@retried
def expand_glob(url: str) -> list[str]:
    """URLs of the files that a path, URL or glob names, sorted; empty where there are none."""
    fs, path = filesystem(url)
    if _type(fs, path) == "file":  # whatever characters its name has
        return [url]
    if not any(character in path for character in "*?["):
        return []
    names = sorted(str(name) for name in fs.glob(path))
    return names if is_local(url) else [str(fs.unstrip_protocol(name)) for name in names]


@retried
def content_key(url: str) -> str:
    """What pins the content behind a URL: SHA-256 of a local file, the store's own checksum elsewhere."""
    fs, path = filesystem(url)
    if is_local(url):
        return file_sha256(Path(path))
    if _type(fs, path) == "file":
        return str(fs.ukey(path))
    return " ".join(f"{name.rsplit('/', 1)[-1]}={fs.ukey(name)}" for name in sorted(fs.ls(path, detail=False)))
