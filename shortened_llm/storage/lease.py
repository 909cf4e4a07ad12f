"""One driver per experiment: a lease that expires when its owner stops renewing it.

`lease/<number>.json` is created exclusively: whoever creates number n + 1, after the owner of n has released it or
stopped renewing it, owns the experiment. Expiry is judged by the watcher's own clock, from the last change it saw, so
clocks need not agree.

An outage of the store stops owner and watcher alike: a watcher counts only the time between answers, so the owner,
which tries every second once it could not renew, comes first. An owner that alone was cut off, or stood still, loses;
it looks at the numbers before it renews, so it finds out within about a second of reaching the store again, and its
driver ends. What its workers wrote until then is harmless: records are the same from both, and a run's list of
checkpoints is put in order against what lies there whenever it starts.
"""

import contextlib
import datetime
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from shortened_llm.errors import BadInputError, brief
from shortened_llm.logs import LOGGER
from shortened_llm.storage.layout import LEASE
from shortened_llm.storage.retry import may_tell, outage_seconds, patience
from shortened_llm.storage.urls import create_bytes, delete, join, list_names, modified, read_bytes, write_bytes

EXPIRY_SECONDS = 30.0
ATTEMPT_SECONDS = 3.0
"""One attempt to renew takes no longer, or it would come too late to tell."""
RETRY_SECONDS = 1.0
RELEASE_SECONDS = 5.0


class LeaseLostError(RuntimeError):
    """Another driver owns the experiment now."""


class StorageLostError(RuntimeError):
    """The storage has not answered for as long as the job waits for it."""


class Lease:
    """A held lease; renewed by a thread until released. Losing it interrupts the main thread, and so does a storage
    that is gone for longer than the job waits for it."""

    def __init__(self, url: str, number: int, expiry_seconds: float, on_lost: Callable[[], None] | None = None) -> None:
        self._url = url
        self._number = number
        self._expiry_seconds = expiry_seconds
        self._on_lost = on_lost or _interrupt_main_thread
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        """Who holds it, as nobody else is called."""
        self._renewals = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)
        self.lost = threading.Event()
        """Set when another driver took over: this one must stop writing."""
        self.outage: str | None = None
        """Why the storage counts as lost."""

    def try_take(self) -> bool:
        """Create the lease object; returns whether this driver owns the experiment now."""
        if not create_bytes(self._object_url(self._number), self._content("held")):
            return False
        for name in _numbers(self._url):
            if name < self._number:
                delete(self._object_url(name))
        self._thread.start()
        return True

    def now(self) -> datetime.datetime:
        """The time by the clock of the store, at the latest renewal: seconds ago."""
        return modified(self._object_url(self._number))

    def release(self) -> None:
        """Stop renewing and let the next driver in at once."""
        self._released.set()
        self._thread.join()
        if self.lost.is_set() or self.outage:
            return
        try:
            with patience(RELEASE_SECONDS):
                if not self._is_taken():
                    write_bytes(self._object_url(self._number), self._content("released"))
        except Exception as error:  # Nothing is lost: it expires by itself.
            LOGGER.warning("lease not released (%s): it expires in %.0f s", brief(error), self._expiry_seconds)

    def _renew_until_released(self) -> None:
        wait, renewed = self._expiry_seconds / 4, time.monotonic()
        while not self._released.wait(wait):
            begun = time.monotonic()
            try:
                with patience(ATTEMPT_SECONDS):
                    if self._is_taken():
                        LOGGER.error("another driver took over this experiment: stopping")
                        self.lost.set()
                        self._on_lost()
                        return
                    self._renewals += 1
                    write_bytes(self._object_url(self._number), self._content("held"))
                wait, renewed = self._expiry_seconds / 4, begun
            except Exception as error:  # An outage of the store must not end the driver: it renews when it can.
                wait = min(RETRY_SECONDS, self._expiry_seconds / 20)
                if time.monotonic() - renewed > outage_seconds():
                    self.outage = brief(error)
                    self._on_lost()
                    return
                if may_tell():
                    LOGGER.warning("lease not renewed for %.0f s (%s); trying again", begun - renewed, brief(error))

    def _is_taken(self) -> bool:
        return _numbers(self._url)[-1:] != [self._number]

    def _content(self, state: str) -> bytes:
        return json.dumps({"owner": self.owner, "state": state, "renewals": self._renewals}).encode()

    def _object_url(self, number: int) -> str:
        return join(self._url, f"{number:08d}.json")


def _interrupt_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextlib.contextmanager
def hold_lease(
    experiment_url: str,
    *,
    expiry_seconds: float = EXPIRY_SECONDS,
) -> Iterator[Lease]:
    """Own the experiment at `experiment_url` for the length of the context.

    A lease whose owner died is waited for; that takes at most `expiry_seconds`.

    Raises:
        BadInputError: while another driver renews its lease.
    """
    url = join(experiment_url, LEASE)
    lease = _take(url, expiry_seconds)
    try:
        yield lease
    except KeyboardInterrupt:
        if lease.lost.is_set():
            raise LeaseLostError(f"another driver took over {experiment_url}") from None
        if lease.outage:
            raise StorageLostError(
                f"{experiment_url} has not answered for {outage_seconds():.0f} s (storage.outage_seconds), at last "
                f"with {lease.outage}; the same command goes on when it does"
            ) from None
        raise
    finally:
        lease.release()


def holder(experiment_url: str, now: datetime.datetime | None = None) -> str | None:
    """The owner of the lease, where it seems to be alive: it has renewed its lease lately. A look at one moment; who
    wants the experiment watches, see `hold_lease`.

    Args:
        now: by the clock of the store, see `Lease.now`; by this machine's, which may be off, unless given.
    """
    url = join(experiment_url, LEASE)
    last = _numbers(url)[-1:]
    held = _read(object_url := join(url, f"{last[0]:08d}.json")) if last else None
    if held is None or held["state"] == "released":
        return None
    age = (now or datetime.datetime.now(datetime.UTC)) - modified(object_url)
    return held["owner"] if age.total_seconds() < EXPIRY_SECONDS else None


def _take(url: str, expiry_seconds: float) -> Lease:
    while True:
        numbers = _numbers(url)
        last = numbers[-1] if numbers else 0
        if last:
            _wait_until_free(join(url, f"{last:08d}.json"), expiry_seconds)
        lease = Lease(url, last + 1, expiry_seconds)
        if lease.try_take():
            return lease


def _wait_until_free(object_url: str, expiry_seconds: float) -> None:
    first = _read(object_url)
    if first is None or first["state"] == "released":
        return
    LOGGER.info(
        "another driver (%s) holds this experiment; waiting up to %.0f s to see whether it is alive",
        first["owner"], expiry_seconds,
    )  # fmt: skip
    waited = 0.0
    while waited < expiry_seconds:
        time.sleep(expiry_seconds / 20)
        waited += expiry_seconds / 20
        now = _read(object_url)
        if now is None or now["state"] == "released":
            return
        if now != first:
            raise BadInputError(
                f"experiment: {object_url.split('/lease/')[0].rsplit('/', 1)[-1]!r} is being run by another driver "
                f"({now['owner']}), which renews its lease: wait for it, stop it, or choose another name"
            )


def _read(object_url: str) -> dict[str, str] | None:
    """What a lease says; None where there is none, or a damaged one."""
    try:
        return dict(json.loads(read_bytes(object_url)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _numbers(url: str) -> list[int]:
    return [int(name.removesuffix(".json")) for name in list_names(url) if name.endswith(".json")]
