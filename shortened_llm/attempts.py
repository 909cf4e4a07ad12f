"""Work that is tried in one process after another, until it is done or has failed for good.

asyncio alone: what a process is, and how the next attempt gets another one, is the caller's business.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shortened_llm.errors import PROGRAMMING_ERRORS, BadInputError, NonFiniteLossError, UnreachableError, last_line

T = TypeVar("T")

ATTEMPTS = 3


class WorkFailedError(RuntimeError):
    """Work failed in every process that tried it; the message is the cause of each failure."""


async def attempt(name: str, work: Callable[[], Awaitable[T]], *, on_failure: Callable[[str], None]) -> T:
    """The result of `work`, which is called up to three times.

    Args:
        name: what the work is called in messages.
        work: one attempt; each is made in another process.
        on_failure: called with each failed attempt, in words.

    Raises:
        BadInputError, NonFiniteLossError, PROGRAMMING_ERRORS: the work's own; see `is_lasting`.
        WorkFailedError: every attempt failed, hung or lost its process.
    """
    causes: list[str] = []
    while True:
        try:
            return await work()
        except Exception as error:
            if is_lasting(error):
                raise
            causes.append(last_line(error))
        left = ATTEMPTS - len(causes)
        on_failure(f"{name} failed ({causes[-1]}); {f'{left} more attempts' if left else 'giving up'}")
        if not left:
            raise WorkFailedError("; ".join(dict.fromkeys(causes)))


async def unless_hung(work: Awaitable[T], signs_of_life: Callable[[], int], timeout_seconds: float) -> T:
    """The result of `work`, which is no longer awaited once it hangs.

    Args:
        signs_of_life: a count that grows while the work makes progress.

    Raises:
        TimeoutError: the count did not grow for `timeout_seconds`.
    """
    running, seen = asyncio.ensure_future(work), signs_of_life()
    try:
        while not (await asyncio.wait({running}, timeout=timeout_seconds))[0]:
            if signs_of_life() == seen:
                raise TimeoutError(f"no sign of life within {timeout_seconds:g} s")
            seen = signs_of_life()
        return running.result()
    finally:
        running.cancel()


def is_lasting(error: Exception) -> bool:
    """Whether an error would come again wherever the work is tried, so that its process is sound."""
    lasting = isinstance(error, (BadInputError, NonFiniteLossError, *PROGRAMMING_ERRORS))
    return lasting and not isinstance(error, UnreachableError)
