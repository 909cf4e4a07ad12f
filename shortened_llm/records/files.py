"""Files of a store."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a stored payload."""

    path: str
    """Relative to the payload's directory."""
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Files in one directory of a store."""

    url: str
    files: tuple[FileEntry, ...]
