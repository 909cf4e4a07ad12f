"""Directories that appear whole or not at all."""

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shortened_llm.errors import BadInputError
from shortened_llm.logs import LOGGER

PARTIAL = ".partial"


def build_directory(final: Path, build: Callable[[Path, Path], None], downloads: Path) -> None:
    """Let `build(directory, downloads)` fill a temporary sibling of `final`, which becomes `final` when it returns.

    Whatever it raises leaves nothing.
    """
    partial = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=PARTIAL, dir=final.parent))
    try:
        build(partial, downloads)
        for path in (partial, *partial.rglob("*")):
            # mkdtemp and safetensors make private files; a team may share these.
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():  # else a run on a file system without locks was first, with the same files
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the directory against other runs; waits for one that is under way, and clears what a killed one left.

    Raises:
        BadInputError: the directory cannot be created or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise BadInputError(f"directory {directory} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOGGER.info("another run is staging into %s: waiting for it", directory)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in directory.glob(f"*{PARTIAL}"):
            shutil.rmtree(stale, ignore_errors=True)
        yield
