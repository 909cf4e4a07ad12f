"""Read or compute: each result stored once, under the fingerprint of what determines it.

`<storage>/<kind>/<fingerprint>/record.json` is written last and atomically; its payload lies beside it in a directory
of its own per attempt. Two writers can waste work, never mix it; without the record nothing was done.
"""

import datetime
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from shortened_llm.errors import BadInputError, brief
from shortened_llm.fingerprint import canonical
from shortened_llm.logs import LOGGER
from shortened_llm.records import to_json
from shortened_llm.storage import layout
from shortened_llm.storage.clients import check_bucket
from shortened_llm.storage.retry import OUTAGE_SECONDS, outlast, patience
from shortened_llm.storage.urls import create_bytes, delete, is_local, join, normalise, read_bytes, write_bytes

T = TypeVar("T")

PROBE_SECONDS = 5.0

# In the path of the copy of the working directory that Ray makes for a submitted job.
SUBMITTED_COPY = "_ray_pkg_"


class DamagedRecordError(RuntimeError):
    """A stored record cannot be read; the message names its file."""


@dataclass(frozen=True, slots=True)
class Store:
    """The records below one storage URL."""

    url: str
    outage_seconds: float = OUTAGE_SECONDS
    """How long the job waits for a storage that does not answer."""

    @classmethod
    def at(cls, url: str, outage_seconds: float = OUTAGE_SECONDS) -> "Store":
        """A store at a user's URL or directory; creates nothing.

        Raises:
            BadInputError: a relative directory in a submitted job, whose working directory is a copy that is deleted.
        """
        if is_local(url) and not Path(url).is_absolute() and SUBMITTED_COPY in os.getcwd():
            raise BadInputError(
                f"{url!r} is relative, but a submitted job runs in a temporary copy of the working "
                "directory; give an absolute path or a URL"
            )
        return cls(normalise(url), outage_seconds)

    def enter(self) -> None:
        """Make every operation of this process outlast the outages that the job does; each process begins with it."""
        outlast(self.outage_seconds)

    def experiment_url(self, name: str) -> str:
        """Directory of what belongs to one experiment alone."""
        return layout.experiment_url(self.url, name)

    def attempt_url(self, kind: str, fingerprint: str) -> str:
        """A new place for the payload of one attempt at a result."""
        return layout.attempt_url(self.url, kind, fingerprint, secrets.token_hex(4))

    def read(self, kind: str, fingerprint: str, record_type: type[T]) -> T | None:
        """The stored record, or None where the result is still to be computed; a damaged one counts as absent."""
        try:
            return self.load(kind, fingerprint, record_type)
        except DamagedRecordError as error:
            LOGGER.warning("%s; it counts as absent", error)
            return None

    def load(self, kind: str, fingerprint: str, record_type: type[T]) -> T | None:
        """The stored record, or None.

        Raises:
            DamagedRecordError: what is stored is no such record.
        """
        url = layout.record_url(self.url, kind, fingerprint)
        try:
            return TypeAdapter(record_type).validate_python(json.loads(read_bytes(url))["record"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedRecordError(f"{url} is no record that this version reads ({_cause(error)})") from None

    def write(
        self, kind: str, fingerprint: str, record: object, *, identity: Mapping[str, object], parents: Iterable[str]
    ) -> None:
        """Store a finished result.

        Args:
            identity: what the fingerprint is of, for people to read.
            parents: fingerprints of the results that it was made from, so that clean-up knows what is needed.
        """
        envelope = {
            "kind": kind,
            "fingerprint": fingerprint,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "parents": sorted(set(parents)),
            "identity": canonical(identity),
            "record": json.loads(to_json(record, indent=None)),
        }
        content = json.dumps(envelope, indent=2, allow_nan=False)
        write_bytes(layout.record_url(self.url, kind, fingerprint), content.encode())

    def remove(self, kind: str, fingerprint: str) -> None:
        """Forget a result; nothing there is no error."""
        delete(layout.record_url(self.url, kind, fingerprint))

    def probe(self) -> None:
        """Write and delete one small object; of a local directory that does not exist yet, in its nearest ancestor. A
        bucket must be there.

        Raises:
            BadInputError: when the storage cannot be reached or written.
        """
        try:
            with patience(PROBE_SECONDS):  # a user waits for the answer
                check_bucket(self.url)
                url = join(self._nearest_directory(), f".probe-{secrets.token_hex(4)}")
                if not create_bytes(url, secrets.token_bytes(8)):
                    raise OSError("a new object already exists")
                delete(url)
        except Exception as error:  # Every protocol has its own errors; all mean that this URL cannot be used.
            raise BadInputError(
                f"storage.url: cannot write to {self.url!r} ({type(error).__name__}: {error}); "
                "check the address, the bucket, the credentials in the environment and the permissions"
            ) from None

    def _nearest_directory(self) -> str:
        if not is_local(self.url):
            return self.url
        directory = Path(self.url)
        while not os.path.lexists(directory):
            directory = directory.parent
        if not directory.is_dir():
            raise NotADirectoryError(f"{directory} is a file, or a link to nothing")
        return str(directory)


def _cause(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return brief(error)
