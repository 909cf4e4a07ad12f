"""Which process measures what, and what happens when one is lost: asyncio alone, whatever a process is.

A process keeps the model of its last work. So a free one takes, in this order: work on the model it holds, the oldest
work on a model that none holds, the oldest work at all. Processes are started on demand and ended when idle.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from shortened_llm.errors import BadInputError, NonFiniteLossError, last_line

# Of one piece of work, each in another process.
ATTEMPTS = 3


class Evaluator(Protocol):
    """A process that measures one thing at a time."""

    async def ready(self) -> None:
        """Returns when the process runs: a node may have to start for it."""

    def kill(self) -> None:
        """End the process, whatever it does."""


@dataclass(eq=False)
class _Work:
    model: str
    name: str
    run: Callable[[Any], Coroutine[Any, Any, Any]]
    on_failure: Callable[[str], None]
    result: asyncio.Future[Any]
    failures: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Idle:
    evaluator: Evaluator
    model: str
    timer: asyncio.TimerHandle


class WorkFailedError(RuntimeError):
    """Work failed in every process that tried it; the message is the cause of each failure."""


class Dispatcher:
    """Hands work to evaluators; to be used within one event loop."""

    def __init__(
        self,
        start: Callable[[], Evaluator],
        *,
        most: int,
        idle_seconds: float,
        timeout_seconds: float,
    ) -> None:
        """
        Args:
            start: starts another process; returns at once.
            most: processes at a time.
            idle_seconds: after this long without work a process ends.
            timeout_seconds: after this long a piece of work counts as hung, counted from when its process is ready.
        """
        self._start, self._most = start, most
        self._idle_seconds, self._timeout_seconds = idle_seconds, timeout_seconds
        self._pending: list[_Work] = []
        self._idle: list[_Idle] = []
        self._busy: dict[asyncio.Task[None], str] = {}

    async def run(
        self,
        model: str,
        name: str,
        work: Callable[[Any], Coroutine[Any, Any, Any]],
        *,
        on_failure: Callable[[str], None],
    ) -> Any:
        """The result of `work(evaluator)`, in some evaluator.

        Args:
            model: equal for work on the same model.
            name: of the work, for messages.
            on_failure: called with each failed attempt, in words.

        Raises:
            BadInputError, NonFiniteLossError: the work's own, which would come again.
            WorkFailedError: the work failed, hung or lost its process in each of several processes.
        """
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        item = _Work(model=model, name=name, run=work, on_failure=on_failure, result=result)
        self._pending.append(item)
        loop.call_soon(self._dispatch)  # after all that is asked for at this moment
        return await result

    def _dispatch(self) -> None:
        while self._pending and (self._idle or len(self._busy) < self._most):
            held = {idle.model for idle in self._idle} | set(self._busy.values())
            work, idle = self._choose(held)
            self._pending.remove(work)
            if idle is not None:
                idle.timer.cancel()
                self._idle.remove(idle)
            task = asyncio.get_running_loop().create_task(self._measure(idle.evaluator if idle else None, work))
            self._busy[task] = work.model
            task.add_done_callback(self._done)

    def _choose(self, held: set[str]) -> tuple[_Work, _Idle | None]:
        for idle in self._idle:
            for work in self._pending:
                if work.model == idle.model:
                    return work, idle
        work = next((work for work in self._pending if work.model not in held), self._pending[0])
        return work, self._idle[0] if self._idle else None

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._busy[task]
        self._dispatch()

    async def _measure(self, held: Evaluator | None, work: _Work) -> None:
        evaluator = held
        limit = asyncio.timeout(None)
        try:
            evaluator = held or self._start()
            await evaluator.ready()
            async with limit:
                limit.reschedule(asyncio.get_running_loop().time() + self._timeout_seconds)
                result = await work.run(evaluator)
        except (BadInputError, NonFiniteLossError) as error:  # it would be the same anywhere
            _settle(work, error=error)
        except Exception as error:
            self._retry(work, f"no result within {self._timeout_seconds:g} s" if limit.expired() else last_line(error))
            if evaluator is not None:
                evaluator.kill()  # lost, hung, or in a state that nobody knows
            return
        else:
            _settle(work, value=result)
        assert evaluator is not None
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end, evaluator)
        self._idle.append(_Idle(evaluator=evaluator, model=work.model, timer=timer))

    def _retry(self, work: _Work, cause: str) -> None:
        work.failures.append(cause)
        left = ATTEMPTS - len(work.failures)
        work.on_failure(f"{work.name} failed ({cause}); " + (f"{left} more attempts" if left else "giving up"))
        if left:
            self._pending.append(work)
        else:
            _settle(work, error=WorkFailedError("; ".join(dict.fromkeys(work.failures))))

    def _end(self, evaluator: Evaluator) -> None:
        self._idle = [idle for idle in self._idle if idle.evaluator is not evaluator]
        evaluator.kill()


def _settle(work: _Work, *, value: object = None, error: Exception | None = None) -> None:
    if work.result.done():  # nobody waits for it any more
        return
    if error is None:
        work.result.set_result(value)
    else:
        work.result.set_exception(error)
