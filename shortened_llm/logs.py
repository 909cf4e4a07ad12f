"""One logger for the whole package, set up once in each process.

INFO is progress: a line that the next may replace. WARNING and above must not be missed.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

LOGGER = logging.getLogger("shortened_llm")
SECONDS_BETWEEN_STEPS = 5.0

NOISY_LIBRARIES = (
    "absl", "accelerate", "datasets", "filelock", "fsspec", "huggingface_hub", "lm_eval", "matplotlib", "numexpr",
    "ray", "ray.data", "ray.train", "ray.tune", "torch", "transformers", "urllib3",
)  # fmt: skip


def quiet_libraries() -> None:
    """Silence libraries: their progress bars and warnings would bury ours, and their errors reach us as exceptions.

    Best called before they are imported, since some read their environment then. What the user has set wins.
    """
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "LMEVAL_LOG_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Listener(Protocol):
    """Hears what is logged about one subject, wherever in the cluster that is done."""

    def __call__(self, line: str | None) -> None:
        """Take a line that the next may replace; None: the subject has ended."""

    def note(self, line: str) -> None:
        """Take what must not be missed."""


_SUBJECT: ContextVar[Listener | str | None] = ContextVar("subject", default=None)


@contextlib.contextmanager
def about(subject: Listener | str | None) -> Iterator[None]:
    """Whatever this thread or task logs in the context is about this: a listener takes it; a name stands before it.

    Other threads log about nothing, unless they enter a context of their own or are started by asyncio.
    """
    token = _SUBJECT.set(subject)
    try:
        yield
    finally:
        _SUBJECT.reset(token)


def subject() -> Listener | str | None:
    """What this context is about, so that another process can enter it too."""
    return _SUBJECT.get()


class _Handler(logging.StreamHandler):
    """Hands a record to the listener of its context, or else writes it to the stream."""

    def emit(self, record: logging.LogRecord) -> None:
        listener = _SUBJECT.get()
        if listener is None or isinstance(listener, str):
            record.subject = f"{listener}: " if listener else ""
            super().emit(record)
        elif record.levelno >= logging.WARNING:
            listener.note(record.getMessage())
        else:
            listener(record.getMessage())


def setup_logging() -> None:
    """Send the package's log lines to stderr as `HH:MM:SS subject: message`; stdout stays for results."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(subject)s%(message)s", datefmt="%H:%M:%S"))
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def setup_process() -> None:
    """Set up a process of the cluster, before it does any work."""
    quiet_libraries()
    setup_logging()


class StepLog:
    """Logs every few seconds how many of equal steps are done and how long the others may take; nothing where there is
    no subject, such as when a method is tried on a toy."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total
        self._started = self._last = time.monotonic()

    def add(self, steps: int = 1) -> None:
        """So many more are done."""
        self._done += steps
        now = time.monotonic()
        if (now - self._last < SECONDS_BETWEEN_STEPS and self._done != self._total) or _SUBJECT.get() is None:
            return
        self._last = now
        left = (now - self._started) / self._done * (self._total - self._done)
        LOGGER.info("%d/%d, %.0f s left", self._done, self._total, left)
