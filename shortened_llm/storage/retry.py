"""Faults of remote storage that pass by themselves: which they are, and how long they are waited for.

Two layers. The S3 client tries each request again (a part of a large file, not the file), for 40 s or so; gcsfs does
so too, for 31 s. Around them every operation of `urls.py` is tried again as a whole, for as long as the job waits for
an outage to pass, with back-off and full jitter, so that a thousand workers do not come back at one moment. What is
permanent (nothing there, no permission, no such bucket) is raised at once.
"""

import contextlib
import functools
import http.client
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_all,
    stop_before_delay,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from shortened_llm.errors import brief
from shortened_llm.logs import LOGGER

OUTAGE_SECONDS = 300.0
"""How long an operation is tried again, counted from its beginning, unless the process says otherwise."""
FEWEST_ATTEMPTS = 5
"""Attempts at an operation that takes long, such as the upload of a large file that was cut off."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0
"""Upper ends of the random waits between attempts."""
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "IncompleteBody",
        "OperationAborted",
    }
)
# Of packages that are there only where their storage is used.
CONNECTION_ERRORS = (
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.parsers", "ResponseParserError"),
    ("aiohttp", "ClientError"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
    ("requests.exceptions", "ChunkedEncodingError"),
    ("urllib3.exceptions", "ProtocolError"),
)

P = ParamSpec("P")
R = TypeVar("R")

TOLD_SECONDS = 30.0
"""Between two lines of the log on attempts that failed: many operations wait for the same outage."""


class _Process:
    """What holds for every thread of this process."""

    outage_seconds = OUTAGE_SECONDS
    told = float("-inf")
    lock = threading.Lock()


_haste: ContextVar[float | None] = ContextVar("haste", default=None)


def outlast(seconds: float) -> None:
    """From now on every operation of this process is tried again for `seconds`."""
    _Process.outage_seconds = seconds


def outage_seconds() -> float:
    """How long an operation of this process is tried again."""
    return _Process.outage_seconds


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """For operations of this thread in the context: give up after `seconds` instead, and clients try each request
    once."""
    token = _haste.set(seconds)
    try:
        yield
    finally:
        _haste.reset(token)


def is_patient() -> bool:
    """Whether clients may try again by themselves."""
    return _haste.get() is None


def retried(operation: Callable[P, R]) -> Callable[P, R]:
    """`operation`, tried again while it fails for what passes. It must not matter whether a failed attempt was carried
    out."""

    @functools.wraps(operation)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        attempts = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
            stop=_give_up(),
            before_sleep=functools.partial(_tell, operation.__name__),
            reraise=True,
        )
        return attempts(operation, *args, **kwargs)

    return tried


def _give_up() -> stop_base:
    if (haste := _haste.get()) is not None:
        return stop_before_delay(haste)
    return stop_all(stop_before_delay(_Process.outage_seconds), stop_after_attempt(FEWEST_ATTEMPTS))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    statuses, codes = _answered(error)
    if statuses or codes:
        return bool(statuses & TRANSIENT_STATUSES or codes & TRANSIENT_CODES)
    if isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException, *_connection_errors())):
        return True
    return bool(getattr(error, "retryable", False))  # of google.auth


def _answered(error: BaseException) -> tuple[set[int], set[str]]:
    """HTTP statuses and codes of the answer that an error stands for; s3fs keeps it as the cause of its own error."""
    statuses: set[int] = set()
    codes: set[str] = set()
    for name in ("code", "status"):  # of gcsfs, of aiohttp
        with contextlib.suppress(TypeError, ValueError):
            statuses.add(int(getattr(error, name)) if hasattr(error, name) else 0)
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)  # of botocore
        if isinstance(answer, dict):
            statuses.add(int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))
            codes.add(str(answer.get("Error", {}).get("Code", "")))
    return statuses - {0}, codes - {""}


@functools.cache
def _connection_errors() -> tuple[type[BaseException], ...]:
    found = []
    for module, name in CONNECTION_ERRORS:
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


def _tell(operation: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if may_tell():
        LOGGER.warning("storage: %s failed (%s); trying again", operation, brief(error))


def may_tell() -> bool:
    """Whether a line on an attempt that failed may go to the log now: one each `TOLD_SECONDS`."""
    with _Process.lock:
        now = time.monotonic()
        if now - _Process.told < TOLD_SECONDS:
            return False
        _Process.told = now
        return True
