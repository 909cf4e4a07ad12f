"""Which process measures what, and what happens when one is lost: asyncio alone, whatever a process is.

A process keeps the model of its last work. So a free one takes, in this order: work without a model, which is short;
work on the model it holds; the oldest work on a model that none holds; the oldest work at all. Processes are started on
demand and ended when idle.

One that finds no work that waits helps with what another does, where that is in chunks. That comes last, since the
work is set up once more, and its model loaded.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from shortened_llm.errors import PROGRAMMING_ERRORS, BadInputError, NonFiniteLossError, UnreachableError, last_line
from shortened_llm.evaluation.chunks import Chunks

# Of one piece of work, each in another process. After as many losses of help, no more is sent.
ATTEMPTS = 3
# What is asked for within this time is looked at together, or all would help with what comes first.
GATHER_SECONDS = 0.05


class Evaluator(Protocol):
    """A process that measures one thing at a time."""

    async def ready(self) -> None:
        """Returns when the process runs: a node may have to start for it. Raises where it can never run."""

    def kill(self) -> None:
        """End the process, whatever it does."""


@dataclass(eq=False)
class _Work:
    model: str | None
    name: str
    run: Callable[[Any, int], Coroutine[Any, Any, Any]]
    chunks: Chunks
    is_divisible: bool
    on_failure: Callable[[str], None]
    ended: "asyncio.Future[list[Any]]"
    """The results of its parts."""
    results: list[Any] = field(default_factory=list)
    open_parts: "set[_Part]" = field(default_factory=set)
    """Those that run."""
    has_attempt: bool = False
    """Whether one waits, starts or runs."""
    causes: list[str] = field(default_factory=list)
    """Of each failure."""
    lost_attempts: int = 0
    helpers: int = 0
    """Sent, whether or not they came."""
    lost_helpers: int = 0


@dataclass(eq=False)
class _Part:
    """What one process does of some work."""

    work: _Work
    is_help: bool

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
            timeout_seconds: work counts as hung after this long without a sign of life, from when its process is ready.
            on_load: called with the work that waits and the busy processes, whenever they change.
        """
        self._start, self._most = start, most
        self._on_load = on_load
        self._idle_seconds, self._timeout_seconds = idle_seconds, timeout_seconds
        self._waiting: list[_Part] = []
        self._begun: list[_Work] = []
        self._idle: list[_Idle] = []
        self._busy: dict[asyncio.Task[None], str | None] = {}

    async def run(
        self,
        model: str | None,
        name: str,
        work: Callable[[Any, int], Coroutine[Any, Any, Any]],
        *,
        chunks: Chunks | None = None,
        is_divisible: bool = False,
        on_failure: Callable[[str], None],
    ) -> list[Any]:
        """The results of `work(evaluator, taker)` in some evaluator, and in those that helped.

        Args:
            model: equal for work on the same model; None for short work that needs none.
            name: of the work, for messages.
            chunks: of the work, which its takers take; none unless given.
            is_divisible: whether others may help.
            on_failure: called with each failed attempt, in words.

        Raises:
            BadInputError, NonFiniteLossError, PROGRAMMING_ERRORS: the work's own, which would come again.
            WorkFailedError: the work failed, hung or lost its process in each of several processes.
        """
        loop = asyncio.get_running_loop()
        one = _Work(
            model=model, name=name, run=work, chunks=chunks or Chunks(), is_divisible=is_divisible,
            on_failure=on_failure, ended=loop.create_future(),
        )  # fmt: skip
        self._begun.append(one)
        self._attempt(one)
        loop.call_later(GATHER_SECONDS, self.dispatch)
        return await one.ended

    def _attempt(self, work: _Work) -> None:
        work.has_attempt = True
        self._waiting.append(_Part(work=work, is_help=False))

    def dispatch(self) -> None:
        """Look whether free processes can do something; to be called when there is more to help with."""
        self._begun = [work for work in self._begun if not work.ended.done()]
        self._waiting = [part for part in self._waiting if not part.work.ended.done()]
        while self._idle or len(self._busy) < self._most:
            chosen = self._choose_waiting() if self._waiting else self._choose_help()
            if chosen is None:
                break
            part, idle = chosen
            if idle is not None:
                idle.timer.cancel()
                self._idle.remove(idle)
            model = part.model or (idle.model if idle else None)
            task = asyncio.get_running_loop().create_task(self._measure(idle.evaluator if idle else None, model, part))
            self._busy[task] = model
            task.add_done_callback(self._done)
        self._on_load(len(self._waiting), len(self._busy))

    def _choose_waiting(self) -> tuple[_Part, _Idle | None]:
        choice = sorted(self._waiting, key=lambda part: part.model is not None)
        held = {idle.model for idle in self._idle} | set(self._busy.values())
        fitting = ((part, idle) for idle in self._idle for part in choice if part.model in (None, idle.model))
        other = next((part for part in choice if part.model not in held), choice[0])
        part, idle = next(fitting, (other, self._idle[0] if self._idle else None))
        self._waiting.remove(part)
        return part, idle

    def _choose_help(self) -> tuple[_Part, _Idle | None] | None:
        idle = self._idle[0] if self._idle else None
        choice = [work for work in self._begun if self._can_be_helped(work, by_new=idle is None)]
        if not choice:
            return None
        work = min(choice, key=lambda work: (work.helpers, idle is None or idle.model != work.model))
        work.helpers += 1
        return _Part(work=work, is_help=True), idle

    def _can_be_helped(self, work: _Work, *, by_new: bool) -> bool:
        if not work.is_divisible or work.lost_helpers >= ATTEMPTS or not work.chunks.can_be_helped:
            return False
        # A process, and perhaps a node, is started only for what is known to be there.
        return not by_new or work.chunks.num_left > work.helpers

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._busy[task]
        self.dispatch()

    async def _measure(self, held: Evaluator | None, model: str | None, part: _Part) -> None:
        evaluator, work = held, part.work
        try:
            evaluator = held or self._start()
            if held is None and not await _is_ready(evaluator, work):
                evaluator.kill()
                return
            if not work.ended.done() and (work.chunks.can_be_helped or not part.is_help):
                work.open_parts.add(part)
                work.results.append(await self._run(work, evaluator))
        except Exception as error:
            if not _is_the_same_anywhere(error):
                self._lost(part, last_line(error))
                if evaluator is not None:
                    evaluator.kill()  # lost, hung, or in a state that nobody knows
                return
            if not work.ended.done():
                work.ended.set_exception(error)
        self._ended(part)
        assert evaluator is not None
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end, evaluator)
        self._idle.append(_Idle(evaluator=evaluator, model=model, timer=timer))

    async def _run(self, work: _Work, evaluator: Evaluator) -> Any:
        taker, signs = work.chunks.enter(), 0
        running = asyncio.ensure_future(work.run(evaluator, taker))
        try:
            while not (await asyncio.wait({running}, timeout=self._timeout_seconds))[0]:
                if work.chunks.signs_of_life(taker) == signs:
                    raise TimeoutError(f"no sign of life within {self._timeout_seconds:g} s")
                signs = work.chunks.signs_of_life(taker)
            result = running.result()
        except BaseException:
            running.cancel()
            work.chunks.give_back(taker)
            raise
        work.chunks.finish(taker)
        return result

    def _ended(self, part: _Part) -> None:
        work = part.work
        work.open_parts.discard(part)
        work.has_attempt &= part.is_help
        if work.ended.done():
            return
        was_last = not work.open_parts and not work.has_attempt
        # Whoever still runs without a chunk is not waited for, nor is an attempt that has not begun. What is left where
        # others ask other things is nothing that another attempt could take.
        is_done = work.chunks.asks_other_things or not work.chunks.num_left
        if work.chunks.are_answered or (was_last and is_done):
            work.ended.set_result(list(work.results))
        elif was_last:
            self._attempt_again(work)  # with what a process took that was lost when the others were done

    def _lost(self, part: _Part, cause: str) -> None:
        work = part.work
        work.open_parts.discard(part)
        work.has_attempt &= part.is_help
        if work.ended.done():
            return
        work.causes.append(cause)
        work.lost_helpers += part.is_help
        work.lost_attempts += not part.is_help
        if work.open_parts or work.has_attempt:
            work.on_failure(f"{work.name} failed in one process ({cause}); others go on")
        else:
            self._attempt_again(work)

    def _attempt_again(self, work: _Work) -> None:
        if left := ATTEMPTS - work.lost_attempts:
            work.on_failure(f"{work.name} failed ({work.causes[-1]}); {left} more attempts")
            self._attempt(work)
        else:
            work.on_failure(f"{work.name} failed ({work.causes[-1]}); giving up")
            work.ended.set_exception(WorkFailedError("; ".join(dict.fromkeys(work.causes))))

    def _end(self, evaluator: Evaluator) -> None:
        self._idle = [idle for idle in self._idle if idle.evaluator is not evaluator]
        evaluator.kill()


def _is_the_same_anywhere(error: Exception) -> bool:
    lasting = isinstance(error, (BadInputError, NonFiniteLossError, *PROGRAMMING_ERRORS))
    return lasting and not isinstance(error, UnreachableError)


async def _is_ready(evaluator: Evaluator, work: _Work) -> bool:
    """Waits for a new process; False if the work ends before."""
    ready = asyncio.ensure_future(evaluator.ready())
    first: set[asyncio.Future[Any]] = {ready, work.ended}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        return False
    await ready
    return True
