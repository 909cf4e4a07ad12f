"""All that lies in a storage, from one listing: files, and the records among them."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shortened_llm.errors import BadInputError
from shortened_llm.storage.layout import EXPERIMENTS, RECORD_NAME
from shortened_llm.storage.store import Store
from shortened_llm.storage.urls import StoredFile, join, read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """One `record.json`."""

    kind: str
    fingerprint: str
    text: str
    """The text as it is stored; it names its payload."""
    parents: frozenset[str]
    """Fingerprints of the results that it was made from."""

    @property
    def path(self) -> str:
        """Directory of the record and its payload, below the storage."""
        return f"{self.kind}/{self.fingerprint}"


def read_records(store: Store, files: Sequence[StoredFile]) -> list[StoredRecord]:
    """Every record among the files of a storage.

    Raises:
        BadInputError: a file in a record's place is none.
    """
    paths = [
        file.path
        for file in files
        if file.path.count("/") == 2 and file.path.endswith(f"/{RECORD_NAME}") and not file.path.startswith(EXPERIMENTS)
    ]

    def read(path: str) -> StoredRecord:
        kind, fingerprint, _ = path.split("/")
        text = read_bytes(join(store.url, path)).decode()
        try:
            parents = frozenset(json.loads(text)["parents"])
            return StoredRecord(kind=kind, fingerprint=fingerprint, text=text, parents=parents)
        except (ValueError, KeyError, TypeError):
            raise BadInputError(f"STORAGE: {path} is no record; look at it and remove it") from None

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(read, paths))
