"""What is tried again, how often, and what is said of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from shortened_llm.attempts import ATTEMPTS, WorkFailedError, attempt, unless_hung
from shortened_llm.errors import BadInputError, NonFiniteLossError, UnreachableError


def tried(outcomes: list[object]) -> tuple[Callable[[], Awaitable[object]], Iterator[object]]:
    """Work whose attempts end so one after another, and what is left of these ends."""
    left = iter(outcomes)

    async def work() -> object:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return work, left


@pytest.mark.parametrize(
    "error",
    [ConnectionError("gone"), TimeoutError("hung"), RuntimeError("broken"), UnreachableError("no data"), OSError("x")],
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    work, _ = tried([error, error, "done"])
    said: list[str] = []
    assert asyncio.run(attempt("one", work, on_failure=said.append)) == "done"
    assert [line.split("; ")[1] for line in said] == ["2 more attempts", "1 more attempts"]
    assert all(line.startswith("one failed (") and str(error) in line for line in said)


@pytest.mark.parametrize(
    "error", [BadInputError("wrong"), NonFiniteLossError("NaN"), TypeError("no"), ImportError("x")]
)
def test_what_would_come_again_is_not(error: Exception) -> None:
    work, left = tried([error, "done"])
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(attempt("one", work, on_failure=pytest.fail))
    assert next(left) == "done"


def test_it_is_given_up_after_some_attempts_with_each_cause_once() -> None:
    causes = [RuntimeError("first"), *[RuntimeError("other")] * (ATTEMPTS - 1)]
    work, left = tried([*causes, "done"])
    said: list[str] = []
    with pytest.raises(WorkFailedError, match=r"^RuntimeError: first; RuntimeError: other$"):
        asyncio.run(attempt("one", work, on_failure=said.append))
    assert said[-1] == "one failed (RuntimeError: other); giving up"
    assert next(left) == "done"


def test_work_is_hung_when_its_signs_of_life_stop() -> None:
    signs = 0

    async def work() -> None:
        nonlocal signs
        for _ in range(8):
            await asyncio.sleep(0.04)
            signs += 1
        await asyncio.sleep(30)

    async def watched() -> float:
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError, match=r"no sign of life within 0\.1 s"):
            await unless_hung(work(), lambda: signs, 0.1)
        return asyncio.get_running_loop().time() - started

    assert 0.3 < asyncio.run(watched()) < 5
    assert signs == 8


def test_a_time_out_of_the_work_itself_keeps_its_cause() -> None:
    async def work() -> None:
        raise TimeoutError("the storage does not answer")

    async def watched() -> None:
        with pytest.raises(TimeoutError, match="the storage does not answer"):
            await unless_hung(work(), lambda: 0, 10)

    asyncio.run(watched())
