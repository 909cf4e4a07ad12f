"""What a checkpoint is called, and what its files must be.

Each worker lists its own files, last, so that a part is never taken for a whole.

CRC-32 because it must cost little beside the training (6.5 GB/s on one core, SHA-256 1.9, BLAKE2b 1.3) and guards
against accidents, not against people.
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from shortened_llm.records import from_json, to_json
from shortened_llm.storage.urls import file_sizes, join, read_bytes

READ_BYTES = 2**20
CHECKPOINT_NAME = re.compile(r"checkpoint_\d{8,}_[0-9a-f]+")


class DamagedCheckpointError(RuntimeError):
    """A checkpoint cannot be used: the message says which file is missing or not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """One file of a checkpoint."""

    path: str
    """Its name in the checkpoint's directory."""
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one worker wrote."""

    files: tuple[WrittenFile, ...]


def checkpoint_name(step: int, attempt: str) -> str:
    """Name of a checkpoint's directory; `attempt`, in hex digits, tells two of the same step apart."""
    return f"checkpoint_{step:08d}_{attempt}"


def step_of(name: str) -> int:
    """The step of a checkpoint, from its directory's name."""
    return int(name.split("_")[1])


def manifest_name(rank: int) -> str:
    return f"manifest_{rank:05d}.json"


def write_manifest(directory: Path, rank: int) -> None:
    """List the files of `directory`, all written by this worker."""
    files = tuple(
        WrittenFile(path=path.name, num_bytes=path.stat().st_size, crc32=_crc32(path))
        for path in sorted(directory.iterdir())
    )
    (directory / manifest_name(rank)).write_text(to_json(Manifest(files=files)))


def check_sizes(url: str, num_ranks: int) -> tuple[WrittenFile, ...]:
    """The files that all manifests of a checkpoint list, once each is there with its size; reads no content.

    Raises:
        DamagedCheckpointError: a manifest or a file is missing, or has another size.
    """
    sizes = file_sizes(url)
    files: list[WrittenFile] = []
    for rank in range(num_ranks):
        name = manifest_name(rank)
        try:
            files += from_json(Manifest, read_bytes(join(url, name))).files
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{name} is missing: worker {rank} of {num_ranks} did not finish") from None
        except ValidationError:
            raise DamagedCheckpointError(f"{name} is damaged") from None
    for file in files:
        if file.path not in sizes:
            raise DamagedCheckpointError(f"{file.path} is missing")
        if sizes[file.path] != file.num_bytes:
            raise DamagedCheckpointError(f"{file.path} has {sizes[file.path]} bytes, {file.num_bytes} were written")
    return tuple(files)


def check_content(directory: Path, files: Iterable[WrittenFile]) -> None:
    """Read the given files through.

    Raises:
        DamagedCheckpointError: one is not what was written.
    """
    for file in files:
        if _crc32(directory / file.path) != file.crc32:
            raise DamagedCheckpointError(f"{file.path} does not have the checksum of what was written")


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(READ_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
