"""Which process measures what, and what happens when one is lost: asyncio alone, whatever a process is.

A process keeps the model of its last work. So a free one takes, in this order: work without a model, which is short;
work on the model it holds; the oldest work on a model that none holds; the oldest work at all. Processes are started on
demand and ended when idle.

Work is cut into parts only where too little is left to occupy all processes: each part is set up anew, and its model
loaded by one process more.
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
    model: str | None
    name: str
    run: Callable[[Any, int, int], Coroutine[Any, Any, Any]]
    is_divisible: bool
    on_failure: Callable[[str], None]
    results: "asyncio.Future[list[asyncio.Future[Any]]]"
    """Of its parts, once it has been cut."""


@dataclass(eq=False)
class _Part:
    work: _Work
    number: int
    of: int
    result: asyncio.Future[Any]
    failures: list[str] = field(default_factory=list)

    @property
    def model(self) -> str | None:
        return self.work.model


@dataclass(eq=False)
class _Idle:
    evaluator: Evaluator
    model: str | None
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
        on_load: Callable[[int, int], None],
    ) -> None:
        """
        Args:
            start: starts another process; returns at once.
            most: processes at a time.
            idle_seconds: after this long without work a process ends.
            timeout_seconds: after this long a piece of work counts as hung, counted from when its process is ready.
            on_load: called with the work and parts of work that wait and the busy processes, whenever they change.
        """
        self._start, self._most = start, most
        self._on_load = on_load
        self._idle_seconds, self._timeout_seconds = idle_seconds, timeout_seconds
        self._waiting: list[_Work] = []
        self._parts: list[_Part] = []
        self._idle: list[_Idle] = []
        self._busy: dict[asyncio.Task[None], str | None] = {}

    async def run(
        self,
        model: str | None,
        name: str,
        work: Callable[[Any, int, int], Coroutine[Any, Any, Any]],
        *,
        is_divisible: bool,
        on_failure: Callable[[str], None],
    ) -> list[Any]:
        """The results of `work(evaluator, part, parts)` for every part, each in some evaluator.

        Args:
            model: equal for work on the same model; None for short work that needs none.
            name: of the work, for messages.
            is_divisible: whether it may be cut into parts; else it is one part.
            on_failure: called with each failed attempt, in words.

        Raises:
            BadInputError, NonFiniteLossError: the work's own, which would come again.
            WorkFailedError: the work failed, hung or lost its process in each of several processes.
        """
        loop = asyncio.get_running_loop()
        one = _Work(
            model=model, name=name, run=work, is_divisible=is_divisible, on_failure=on_failure,
            results=loop.create_future(),
        )  # fmt: skip
        self._waiting.append(one)
        loop.call_soon(self._dispatch)  # after all that is asked for at this moment
        # All parts end before one's error is raised: none is left to itself.
        ended = await asyncio.gather(*await one.results, return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException):
                raise result
        return ended

    def _dispatch(self) -> None:
        while (self._parts or self._waiting) and (self._idle or len(self._busy) < self._most):
            chosen, idle = self._choose()
            part = self._cut(chosen) if isinstance(chosen, _Work) else chosen
            self._parts.remove(part)
            if idle is not None:
                idle.timer.cancel()
                self._idle.remove(idle)
            model = part.model or (idle.model if idle else None)
            task = asyncio.get_running_loop().create_task(self._measure(idle.evaluator if idle else None, model, part))
            self._busy[task] = model
            task.add_done_callback(self._done)
        self._on_load(len(self._parts) + len(self._waiting), len(self._busy))

    def _choose(self) -> tuple[_Work | _Part, _Idle | None]:
        every: list[_Work | _Part] = [*self._parts, *self._waiting]
        choice = sorted(every, key=lambda work: work.model is not None)
        for idle in self._idle:
            for work in choice:
                if work.model in (None, idle.model):
                    return work, idle
        held = {idle.model for idle in self._idle} | set(self._busy.values())
        work = next((work for work in choice if work.model not in held), choice[0])
        return work, self._idle[0] if self._idle else None

    def _cut(self, work: _Work) -> _Part:
        """The first part of work whose turn has come; the others are left to the other processes."""
        self._waiting.remove(work)
        left = len(self._parts) + len(self._waiting)
        number = self._most if work.is_divisible and left < self._most else 1
        loop = asyncio.get_running_loop()
        parts = [_Part(work=work, number=part, of=number, result=loop.create_future()) for part in range(number)]
        self._parts += parts
        work.results.set_result([part.result for part in parts])
        return parts[0]

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._busy[task]
        self._dispatch()

    async def _measure(self, held: Evaluator | None, model: str | None, part: _Part) -> None:
        evaluator = held
        limit = asyncio.timeout(None)
        try:
            evaluator = held or self._start()
            await evaluator.ready()
            async with limit:
                limit.reschedule(asyncio.get_running_loop().time() + self._timeout_seconds)
                result = await part.work.run(evaluator, part.number, part.of)
        except (BadInputError, NonFiniteLossError) as error:  # it would be the same anywhere
            _settle(part, error=error)
        except Exception as error:
            self._retry(part, f"no result within {self._timeout_seconds:g} s" if limit.expired() else last_line(error))
            if evaluator is not None:
                evaluator.kill()  # lost, hung, or in a state that nobody knows
            return
        else:
            _settle(part, value=result)
        assert evaluator is not None
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end, evaluator)
        self._idle.append(_Idle(evaluator=evaluator, model=model, timer=timer))

    def _retry(self, part: _Part, cause: str) -> None:
        part.failures.append(cause)
        left = ATTEMPTS - len(part.failures)
        said = f"{part.work.name} failed ({cause}); " + (f"{left} more attempts" if left else "giving up")
        part.work.on_failure(said)
        if left:
            self._parts.append(part)
        else:
            _settle(part, error=WorkFailedError("; ".join(dict.fromkeys(part.failures))))

    def _end(self, evaluator: Evaluator) -> None:
        self._idle = [idle for idle in self._idle if idle.evaluator is not evaluator]
        evaluator.kill()


def _settle(part: _Part, *, value: object = None, error: Exception | None = None) -> None:
    if part.result.done():  # nobody waits for it any more
        return
    if error is None:
        part.result.set_result(value)
    else:
        part.result.set_exception(error)
