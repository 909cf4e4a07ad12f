"""Decides which process measures what; needs asyncio alone, whatever a process is.

A process keeps the model of its last work. A free one takes work on that model, or else on a model that no other
process holds, or else any; among these the longest, and of equal length the oldest. Processes are started while work
waits for one, and ended when idle.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shortened_llm.attempts import attempt, is_lasting, unless_hung
from shortened_llm.errors import last_line

T = TypeVar("T")

# What is asked for within this time is handed out together, or a process would lose its model to what came first.
GATHER_SECONDS = 0.05
# After a process could not be started while others run.
PAUSE_SECONDS = 60.0


class Evaluator(Protocol):
    """A process that measures one thing at a time."""

    signs_of_life: int
    """A count that grows while it measures."""

    async def ready(self) -> None:
        """Returns when the process runs: a node may have to start for it. Raises where it can never run."""

    def kill(self) -> None:
        """End the process, whatever it does."""


@dataclass(eq=False, kw_only=True)
class _Process:
    evaluator: Any
    model: str | None = None
    """That of its last work."""


@dataclass(eq=False, kw_only=True)
class _Request:
    name: str
    model: str
    size: float
    on_failure: Callable[[str], None]
    turn: "asyncio.Future[_Process]"


class Evaluators:
    """Runs work in evaluators; to be used within one event loop."""

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
            timeout_seconds: work counts as hung after this long without a sign of life.
            on_load: called with the work that waits and the busy processes, whenever they change.
        """
        self._start, self._most, self._on_load = start, most, on_load
        self._idle_seconds, self._timeout_seconds = idle_seconds, timeout_seconds
        self._waiting: list[_Request] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._busy: dict[_Request, _Process] = {}
        self._idle: dict[_Process, asyncio.TimerHandle] = {}
        """Idle processes, each with the timer that ends it."""
        self._start_after = -math.inf

    async def run(
        self,
        name: str,
        model: str,
        work: Callable[[Any], Awaitable[T]],
        *,
        size: float = math.inf,
        on_failure: Callable[[str], None],
    ) -> T:
        """The result of `work(evaluator)`; an attempt that fails is repeated in another process.

        Args:
            name: what the work is called in messages.
            model: equal for work on the same model.
            size: how long the work is beside other work; what cannot be cut counts as longest.
            on_failure: called with each failure, in words.

        Raises:
            BadInputError, NonFiniteLossError, PROGRAMMING_ERRORS, WorkFailedError: as `attempt`.
        """

        async def once() -> T:
            turn = asyncio.get_running_loop().create_future()
            return await self._run(_Request(name=name, model=model, size=size, on_failure=on_failure, turn=turn), work)

        return await attempt(name, once, on_failure=on_failure)

    async def _run(self, request: _Request, work: Callable[[Any], Awaitable[T]]) -> T:
        self._waiting.append(request)
        self._hand_out_soon()
        is_sound = False
        try:
            evaluator = (await request.turn).evaluator
            result = await unless_hung(work(evaluator), lambda: evaluator.signs_of_life, self._timeout_seconds)
            is_sound = True
            return result
        except Exception as error:
            is_sound = is_lasting(error)
            raise
        finally:
            if process := self._busy.pop(request, None):
                if is_sound:
                    self._rest(process)
                else:
                    process.evaluator.kill()  # lost, hung, or in a state that nobody knows
            self._hand_out_soon()

    def _hand_out_soon(self, seconds: float = GATHER_SECONDS) -> None:
        asyncio.get_running_loop().call_later(seconds, self._hand_out)

    def _hand_out(self) -> None:
        self._waiting = [request for request in self._waiting if not request.turn.done()]
        while self._waiting and self._idle:
            request, process = self._choose()
            self._waiting.remove(request)
            self._idle.pop(process).cancel()
            process.model = request.model
            self._busy[request] = process
            request.turn.set_result(process)
        while len(self._starting) < len(self._waiting) and self._may_start():
            starting = asyncio.get_running_loop().create_task(self._start_one())
            self._starting.add(starting)
        if not self._waiting:
            while self._starting:
                self._starting.pop().cancel()
        self._on_load(len(self._waiting), len(self._busy))

    def _choose(self) -> tuple[_Request, _Process]:
        """What is measured next, and where."""
        longest_first = sorted(self._waiting, key=lambda request: -request.size)
        pairs = ((request, process) for request in longest_first for process in self._idle)
        fitting = (pair for pair in pairs if pair[0].model == pair[1].model)
        held = {process.model for process in (*self._idle, *self._busy.values())}
        other = next((request for request in longest_first if request.model not in held), longest_first[0])
        return next(fitting, (other, next(iter(self._idle))))

    def _may_start(self) -> bool:
        count = len(self._idle) + len(self._busy) + len(self._starting)
        return count == 0 or (count < self._most and asyncio.get_running_loop().time() >= self._start_after)

    async def _start_one(self) -> None:
        evaluator = None
        try:
            evaluator = self._start()
            await evaluator.ready()
        except BaseException as error:
            if evaluator is not None:
                evaluator.kill()
            if not isinstance(error, Exception):
                raise  # cancelled: nothing waits for it any more
            self._starting = self._starting - {asyncio.current_task()}
            self._not_started(error)
        else:
            self._starting = self._starting - {asyncio.current_task()}
            self._rest(_Process(evaluator=evaluator))
        self._hand_out_soon(0)

    def _not_started(self, error: Exception) -> None:
        """Leaves the work to the other processes for a while. Without any, every attempt that waits has failed."""
        waiting = [request for request in self._waiting if not request.turn.done()]
        if self._idle or self._busy or self._starting:
            self._start_after = asyncio.get_running_loop().time() + PAUSE_SECONDS
            self._hand_out_soon(PAUSE_SECONDS)
            if waiting and not self._starting:
                waiting[0].on_failure(f"an evaluator could not be started ({last_line(error)}); others go on")
        else:
            for request in waiting:
                request.turn.set_exception(error)

    def _rest(self, process: _Process) -> None:
        loop = asyncio.get_running_loop()
        self._idle[process] = loop.call_later(self._idle_seconds, self._end, process)

    def _end(self, process: _Process) -> None:
        del self._idle[process]
        process.evaluator.kill()
