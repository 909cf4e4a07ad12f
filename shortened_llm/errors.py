"""Errors that a user can act on, and how to show any other."""

import re


class BadInputError(ValueError):
    """The user's input cannot work. The message names the field, the value and what is allowed.

    Entry points print the message alone and exit with code 2. One positional argument, so that it survives pickling
    between processes.
    """


class UnreachableError(BadInputError):
    """Data that cannot be read here and now: bad input when a job is checked, a fault that may pass later on."""


class NonFiniteLossError(RuntimeError):
    """A loss or score is NaN or infinite; the message says where."""


def last_line(error: BaseException) -> str:
    """What to show of an error that crossed several processes: the last line of its message.

    Ray's messages end with the original error, as `module.Class: message`.
    """
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no message"
    if inner := re.fullmatch(r"(?:\w+\.)*(\w*(?:Error|Exception|Exit|Interrupt): .*)", last):
        return inner[1]
    return f"{type(error).__name__}: {last}"
