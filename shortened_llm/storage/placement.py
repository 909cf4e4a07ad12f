"""The files of a model that come to a place together: an attempt that is cut off leaves nothing that looks whole."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shortened_llm.storage.scratch import temporary_directory
from shortened_llm.storage.urls import delete, is_local, join, upload_file

PARTIAL = ".partial"
"""In a local place, the directory of files on their way; what a process that was killed left there is replaced."""
LAST = "config.json"
"""Without it nothing loads."""
WEIGHTS = "*.safetensors*"


@contextmanager
def placed(url: str) -> Iterator[Path]:
    """An empty directory for the length of a context. When that ends well, its files are moved to `url`, config.json
    last; weights that lay in a local place are removed before.

    The directory is on the disk of `url`, or on that of this node where `url` is remote: there each file is deleted as
    soon as it was uploaded.
    """
    if is_local(url):
        place = Path(url)
        shutil.rmtree(place / PARTIAL, ignore_errors=True)
        (place / PARTIAL).mkdir(parents=True)
        try:
            yield place / PARTIAL
            for old in (place / LAST, *place.glob(WEIGHTS)):
                old.unlink(missing_ok=True)
            for name in _names(place / PARTIAL):
                (place / name).parent.mkdir(exist_ok=True)
                (place / PARTIAL / name).replace(place / name)
        finally:
            shutil.rmtree(place / PARTIAL, ignore_errors=True)  # what is left does not hide what went wrong
        return
    with temporary_directory() as temporary:
        directory = Path(temporary)
        yield directory
        names = _names(directory)
        try:
            for name in names:
                upload_file(directory / name, join(url, name))
                (directory / name).unlink()
        except BaseException:
            with contextlib.suppress(Exception):  # which would hide what went wrong
                for name in names:
                    delete(join(url, name))
            raise


def _names(directory: Path) -> list[str]:
    """Files in a directory and below, in the order in which they are moved."""
    names = (str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())
    return sorted(names, key=lambda name: (name == LAST, name))
