"""Where a process keeps what is on its way to storage or from it: on this node's disk, freed even after a SIGKILL.

Each process holds a lock beside its directory, which the kernel lets go of when the process ends in whatever way. The
next run on the node removes the directories whose lock is free: a few killed workers would fill the disk otherwise.
"""

import atexit
import contextlib
import functools
import secrets
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "shortened_llm_scratch_"
_held: set[Path] = set()
"""Locks of this process."""


@functools.cache
def scratch_directory() -> Path:
    """This process's directory, which stays until it ends; the first call removes those that others left behind."""
    remove_left_behind()
    directory = _base() / f"{PREFIX}{secrets.token_hex(8)}"
    lock = FileLock(directory.with_suffix(".lock"))
    lock.acquire()
    _held.add(Path(lock.lock_file))
    directory.mkdir()
    atexit.register(_remove, directory, lock)  # keeps the lock until then
    return directory


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory below it for the length of a context."""
    return tempfile.TemporaryDirectory(dir=scratch_directory())


def remove_left_behind() -> int:
    """Remove the directories of processes that have ended; returns how many there are of others that live."""
    locks = [path for path in _base().glob(f"{PREFIX}*.lock") if path not in _held]
    for path in locks:
        with contextlib.suppress(Timeout, OSError), FileLock(path, timeout=0):  # OSError: of another user
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
    return sum(path.exists() for path in locks)


def _base() -> Path:
    return Path(tempfile.gettempdir())


def _remove(directory: Path, lock: FileLock) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
