"""Errors that a user can act on, and how to show any other."""

import contextlib
import os
import re
from collections.abc import Iterator


class BadInputError(ValueError):
    """The user's input cannot work. The message names the field, the value and what is allowed.

    Entry points print the message alone and exit with code 2. One positional argument, so that it survives pickling
    between processes.
    """


class UnreachableError(BadInputError):
    """Data that cannot be read here and now: bad input when a job is checked, a fault that may pass later on."""


class NonFiniteLossError(RuntimeError):
    """A loss or score is NaN or infinite; the message says where."""


PROGRAMMING_ERRORS = (TypeError, AttributeError, NotImplementedError, ImportError)
"""What would come again wherever it is tried, and so is not tried again."""


def original(error: Exception) -> Exception:
    """The error of a task on the cluster as it was raised there, without Ray's wrapping, which repeats a stack trace in
    its message; any other error itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def last_line(error: BaseException) -> str:
    """What to show of an error that crossed several processes: the last line of its message.

    Ray's messages end with the original error, as `module.Class: message`.
    """
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no message"
    if inner := re.fullmatch(r"(?:\w+\.)*(\w*(?:Error|Exception|Exit|Interrupt): .*)", last):
        return inner[1]
    return f"{type(error).__name__}: {last}"


def path_fault(path: str) -> str | None:
    """Why there is no such directory, file or URL anywhere; None where there may be."""
    try:
        names = os.fsencode(path).split(b"/")
    except UnicodeEncodeError:
        names = [b"\0"]
    if any(b"\0" in name for name in names):
        return "has a character that no path has"
    is_local = "://" not in path or path.startswith("file://")
    if is_local and any(len(name) > MOST_NAME_BYTES for name in names):
        return f"has a name of more than {MOST_NAME_BYTES} bytes"
    return "names a protocol and no place" if re.fullmatch(r"(?!file:)[\w+.-]+:/*", path) else None


MOST_NAME_BYTES = 255
SHOWN_CHARACTERS = 200


def brief(value: object) -> str:
    """The text of a value, or of an error behind its class, on one line and cut short."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..."


class Faults:
    """Bad input that several checks found, told at once."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @contextlib.contextmanager
    def gather(self) -> Iterator[None]:
        """Keep the `BadInputError` of a check, so that the next one has its say."""
        try:
            yield
        except BadInputError as error:
            self._messages += [line for line in str(error).splitlines() if line not in self._messages]

    def raise_any(self) -> None:
        """Raises `BadInputError` with one line for each fault, where there are any."""
        if self._messages:
            raise BadInputError("\n".join(self._messages))
