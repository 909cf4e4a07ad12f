"""Which process measures what, and what happens when one is lost, hung or broken."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from shortened_llm.errors import BadInputError, NonFiniteLossError, UnreachableError
from shortened_llm.evaluation.chunks import Chunks
from shortened_llm.evaluation.dispatch import ATTEMPTS, Dispatcher, WorkFailedError


@dataclass(eq=False)
class Process:
    """An evaluator in this process: it keeps what it measured."""

    number: int
    measured: list[str] = field(default_factory=list)
    killed: bool = False
    start_seconds: float = 0.0

    async def ready(self) -> None:
        await asyncio.sleep(self.start_seconds)

    def kill(self) -> None:
        self.killed = True


class Pool:
    def __init__(
        self, most: int, *, idle_seconds: float = 10.0, timeout_seconds: float = 10.0, start_seconds: float = 0.0
    ) -> None:
        self.refusals: list[str] = []
        self.start_seconds = start_seconds
        self.processes: list[Process] = []
        self.failures: list[str] = []
        self.loads: list[tuple[int, int]] = []
        self.dispatcher = Dispatcher(
            self._start, most=most, idle_seconds=idle_seconds, timeout_seconds=timeout_seconds,
            on_load=lambda waiting, busy: self.loads.append((waiting, busy)),
        )  # fmt: skip

    def _start(self) -> Process:
        if self.refusals:
            raise ValueError(self.refusals.pop())
        self.processes.append(Process(len(self.processes), start_seconds=self.start_seconds))
        return self.processes[-1]

    async def run(
        self, model: str | None, name: str, work: Callable[[Process], Awaitable[object]] | None = None
    ) -> object:
        async def measure(process: Process, _: int) -> object:
            process.measured.append(f"{model} {name}")
            if work is None:
                await asyncio.sleep(0.01)
                return f"{model} {name}"
            return await work(process)

        (result,) = await self.dispatcher.run(model, name, measure, on_failure=self.failures.append)
        return result

    def chunks(self) -> Chunks:
        return Chunks(on_open=lambda: asyncio.get_running_loop().call_soon(self.dispatcher.dispatch))

    async def share(
        self,
        model: str,
        count: int,
        on_chunk: Callable[[Process, int], None] = lambda *_: None,
        *,
        digest: Callable[[], str] = lambda: "",
        set_up: Callable[[Process], float] = lambda _: 0.0,
    ) -> list[int]:
        """Work in chunks of 0.01 s, which processes can share, each after some seconds; returns what was measured."""
        chunks = self.chunks()

        async def measure(process: Process, taker: int) -> list[int]:
            found = []
            asks = digest()
            await asyncio.sleep(set_up(process))
            while (chunk := chunks.take(taker, "chunks", asks, count)) is not None:
                on_chunk(process, chunk)
                await asyncio.sleep(0.01)
                process.measured.append(f"{model} {chunk}")
                found.append(chunk)
            return found

        results = await self.dispatcher.run(
            model, model, measure, chunks=chunks, is_divisible=True, on_failure=self.failures.append
        )
        return sorted(chunk for result in results for chunk in result)


def test_a_process_keeps_to_its_model_and_helps_when_it_is_done() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        work = [pool.run(model, str(unit)) for model in "ab" for unit in range(4)]
        assert await asyncio.gather(*work) == [f"{model} {unit}" for model in "ab" for unit in range(4)]
        await asyncio.gather(*(pool.run("c", str(unit)) for unit in range(4)))
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.processes) == 2
    first, second = (process.measured for process in pool.processes)
    assert [one[0] for one in first[:4]] == ["a"] * 4
    assert [one[0] for one in second[:4]] == ["b"] * 4
    assert sorted(first[4:] + second[4:]) == [f"c {unit}" for unit in range(4)]
    assert len(first) > 4  # both took part
    assert len(second) > 4


def test_who_is_free_helps_with_what_another_does() -> None:
    async def scenario() -> Pool:
        pool = Pool(3)
        assert await asyncio.gather(pool.share("a", 20), pool.share("b", 4)) == [list(range(20)), list(range(4))]
        return pool

    pool = asyncio.run(scenario())
    first, second, third = (process.measured for process in pool.processes)
    assert [one[0] for one in first] == ["a"] * len(first)
    assert second[0] in ("b 0", "b 1")
    assert second[-1][0] == "a"
    assert all(len(measured) >= 6 for measured in (first, second, third))  # 8 of 24 each


def test_work_that_waits_goes_before_help() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        await asyncio.gather(pool.share("a", 8), pool.run("b", "one"), pool.run("b", "two"), pool.run("b", "three"))
        return pool

    first, second = (process.measured for process in asyncio.run(scenario()).processes)
    assert {one[0] for one in first} == {"a"}
    assert second[:3] == ["b one", "b two", "b three"]
    assert second[3][0] == "a"


def test_a_process_alone_does_all() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)
        assert await pool.share("a", 3) == [0, 1, 2]
        return pool

    assert len(asyncio.run(scenario()).processes) == 1


def test_help_that_comes_late_is_not_waited_for() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        await pool.run("a", "one")
        pool.start_seconds = 30.0  # a node has to start
        async with asyncio.timeout(5):
            assert await pool.share("a", 3) == [0, 1, 2]
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.processes) == 2
    assert not pool.processes[1].measured


@pytest.mark.parametrize("lost", [0, 1])
def test_what_a_lost_process_took_is_done_by_others(lost: int) -> None:
    async def scenario() -> Pool:
        pool = Pool(2)

        def lose(process: Process, _: int) -> None:
            if process.number == lost and len(process.measured) == 2:
                raise ConnectionError("the process is gone")

        assert await pool.share("a", 10, lose) == list(range(10))
        return pool

    pool = asyncio.run(scenario())
    assert pool.processes[lost].killed
    assert len(pool.processes) == 3
    assert len(pool.failures) == 1


def test_help_that_cannot_be_had_costs_nothing() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        await pool.run("a", "one")
        pool.refusals = ["no such node"] * 10
        assert await pool.share("a", 30) == list(range(30))
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.processes) == 1
    assert pool.failures == ["a failed in one process (ValueError: no such node); others go on"] * ATTEMPTS


def test_help_that_fails_again_and_again_leaves_the_work_to_who_began_it() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)

        def lose(process: Process, _: int) -> None:
            if process.number > 0:
                raise ConnectionError("the process is gone")

        assert await pool.share("a", 20, lose) == list(range(20))
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.processes) == 1 + ATTEMPTS
    assert "giving up" not in " ".join(pool.failures)


def test_what_a_helper_lost_when_the_others_were_done_is_done_again() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        chunks = pool.chunks()
        helped, others_done = asyncio.Event(), asyncio.Event()

        async def measure(process: Process, taker: int) -> list[int]:
            found = []
            while (chunk := chunks.take(taker, "chunks", "", 3)) is not None:
                if process.number == 1:
                    helped.set()
                    await others_done.wait()
                    await asyncio.sleep(0.05)
                    raise ConnectionError("the process is gone")
                found.append(chunk)
                await helped.wait()
            others_done.set()
            return found

        results = await pool.dispatcher.run(
            "a", "a", measure, chunks=chunks, is_divisible=True, on_failure=pool.failures.append
        )
        assert results == [[0, 2], [1]]
        return pool

    assert asyncio.run(scenario()).failures == ["a failed (ConnectionError: the process is gone); 3 more attempts"]


def test_a_kind_that_was_lost_whole_is_done_again() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        chunks = pool.chunks()
        helped, lost = asyncio.Event(), asyncio.Event()

        async def measure(process: Process, taker: int) -> list[str]:
            found = []
            if taker == 0:
                found.append(f"many {chunks.take(taker, 'many', '', 3)}")
                await helped.wait()  # the other has all there is of one kind
            while (chunk := chunks.take(taker, "one", "", 1)) is not None:
                if process.number == 1:
                    helped.set()
                    await asyncio.sleep(0.02)
                    lost.set()
                    raise ConnectionError("the process is gone")
                found.append(f"one {chunk}")
            if taker == 0:
                pool.start_seconds = 0.2  # help that comes again comes too late
                await lost.wait()
            while (chunk := chunks.take(taker, "many", "", 3)) is not None:
                found.append(f"many {chunk}")
            return found

        results = await pool.dispatcher.run(
            "a", "a", measure, chunks=chunks, is_divisible=True, on_failure=pool.failures.append
        )
        assert sorted(one for result in results for one in result) == ["many 0", "many 1", "many 2", "one 0"]
        return pool

    asyncio.run(scenario())


def test_what_another_attempt_could_not_take_ends_the_work() -> None:
    """A prompt with the date in it, at midnight."""

    async def scenario() -> None:
        pool = Pool(1)
        days = iter(["monday", "tuesday", "tuesday", "tuesday"])
        chunks = Chunks()
        early = chunks.enter()
        assert chunks.take(early, "chunks", "monday", 3) == 0
        chunks.finish(early)  # one is answered

        async def measure(process: Process, taker: int) -> list[int]:
            asks = next(days)
            found = []
            while (chunk := chunks.take(taker, "chunks", asks, 3)) is not None:
                if asks == "monday":
                    raise ConnectionError("the process is gone")
                found.append(chunk)
            return found

        async with asyncio.timeout(5):
            results = await pool.dispatcher.run(
                "a", "a", measure, chunks=chunks, is_divisible=True, on_failure=pool.failures.append
            )
        assert results == [[]]  # whoever joins them sees what is missing

    asyncio.run(scenario())


def test_a_chunk_that_kills_each_process_ends_the_work_however_much_others_do() -> None:
    async def scenario() -> tuple[Pool, int]:
        pool, deaths, running = Pool(2), 0, 0
        chunks = pool.chunks()

        async def measure(process: Process, taker: int) -> list[int]:
            nonlocal deaths, running
            kind, is_alone = f"harmless {deaths}", not running  # each attempt finds more, and somebody to help
            running += 1
            try:
                chunks.take(taker, kind, "", 10)
                await asyncio.sleep(0.01)
                if is_alone and chunks.take(taker, "deadly", "", 1) is not None:
                    deaths += 1
                    raise ConnectionError("the process is gone")
                while chunks.take(taker, kind, "", 10) is not None:
                    await asyncio.sleep(0.01)
                return []
            finally:
                running -= 1

        async with asyncio.timeout(20):
            with pytest.raises(WorkFailedError):
                await pool.dispatcher.run(
                    "a", "a", measure, chunks=chunks, is_divisible=True, on_failure=pool.failures.append
                )
        return pool, deaths

    pool, deaths = asyncio.run(scenario())
    assert deaths == ATTEMPTS
    assert "giving up" in pool.failures[-1]


def test_who_holds_nothing_is_not_waited_for() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        async with asyncio.timeout(5):
            found = await pool.share("a", 20, set_up=lambda process: 30.0 * process.number)
        assert found == list(range(20))
        return pool

    assert len(asyncio.run(scenario()).processes) == 2


def test_work_that_others_did_does_not_wait_for_its_own_process() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        await pool.run("a", "one")
        pool.start_seconds = 30.0  # a node has to start, for the second work
        async with asyncio.timeout(5):
            first, second = await asyncio.gather(pool.share("a", 5), pool.share("b", 5))
            assert first == second == list(range(5))
            assert await pool.run("a", "two") == "a two"
        return pool

    pool = asyncio.run(scenario())
    assert [process.killed for process in pool.processes] == [False, True]


def test_nobody_can_help_with_what_asks_other_things_each_time() -> None:
    async def scenario() -> Pool:
        pool = Pool(3)
        asked = iter(range(100))
        async with asyncio.timeout(5):
            found = await pool.share(
                "a", 20, digest=lambda: str(next(asked)), set_up=lambda process: 0.05 * process.number
            )
        assert found == list(range(20))
        return pool

    pool = asyncio.run(scenario())
    assert [len(process.measured) for process in pool.processes] == [20, 0, 0][: len(pool.processes)]


def test_what_asks_other_things_each_time_and_is_lost_is_done_anew() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        asked = iter(range(100))

        def lose(process: Process, chunk: int) -> None:
            if process.number == 0 and chunk == 3:
                raise ConnectionError("the process is gone")

        assert await pool.share("a", 6, lose, digest=lambda: str(next(asked))) == list(range(6))
        return pool

    assert len(asyncio.run(scenario()).failures) == 1


def test_a_process_is_started_only_for_chunks_that_are_known() -> None:
    async def scenario() -> Pool:
        pool = Pool(6)
        await pool.share("a", 1)
        return pool

    assert len(asyncio.run(scenario()).processes) == 1


def test_each_chunk_is_a_sign_of_life() -> None:
    async def scenario() -> Pool:
        pool = Pool(1, timeout_seconds=0.1)
        assert await pool.share("a", 40) == list(range(40))
        return pool

    assert not asyncio.run(scenario()).failures


def test_work_without_chunks_gives_signs_of_life() -> None:
    async def scenario() -> Pool:
        pool = Pool(1, timeout_seconds=0.1)
        chunks = pool.chunks()

        async def measure(process: Process, taker: int) -> str:
            for _ in range(10):
                await asyncio.sleep(0.04)
                chunks.sign_of_life(taker)
            return "measured"

        assert await pool.dispatcher.run("a", "a", measure, chunks=chunks, on_failure=pool.failures.append) == [
            "measured"
        ]
        return pool

    assert not asyncio.run(scenario()).failures


def test_a_process_that_takes_no_more_chunks_is_hung() -> None:
    async def scenario() -> Pool:
        pool = Pool(1, timeout_seconds=0.1)
        assert await pool.share("a", 3, set_up=lambda process: 0.0 if process.number else 30.0) == [0, 1, 2]
        return pool

    pool = asyncio.run(scenario())
    assert [process.killed for process in pool.processes] == [True, False]
    assert "no sign of life within 0.1 s" in pool.failures[0]


def test_what_the_last_process_took_and_lost_is_done_again() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)

        def lose(process: Process, chunk: int) -> None:
            if process.number == 0 and chunk == 4:
                raise ConnectionError("the process is gone")

        assert await pool.share("a", 5, lose) == list(range(5))
        return pool

    assert [len(process.measured) for process in asyncio.run(scenario()).processes] == [4, 5]


def test_a_chunk_that_fails_everywhere_is_the_works_error() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)

        def fail(_: Process, chunk: int) -> None:
            if chunk == 1:
                raise RuntimeError("broken")

        with pytest.raises(WorkFailedError, match="broken"):
            await pool.share("a", 4, fail)
        assert await pool.run("a", "task") == "a task"
        return pool

    assert "giving up" in asyncio.run(scenario()).failures[-1]


def test_work_without_a_model_goes_first_and_costs_no_process_its_model() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)
        first = asyncio.ensure_future(pool.run("a", "one"))
        while not pool.processes:
            await asyncio.sleep(0.001)
        rest = [pool.run("b", "one"), pool.run("a", "two"), pool.run(None, "join")]
        await asyncio.gather(first, *rest)
        return pool

    (process,) = asyncio.run(scenario()).processes
    assert process.measured == ["a one", "None join", "a two", "b one"]


def test_processes_start_on_demand_and_end_when_idle() -> None:
    async def scenario() -> Pool:
        pool = Pool(8, idle_seconds=0.2)
        await pool.run("a", "one")
        await pool.run("a", "two")
        assert len(pool.processes) == 1
        assert not pool.processes[0].killed
        await asyncio.sleep(0.5)
        assert pool.processes[0].killed
        await pool.run("a", "three")
        return pool

    pool = asyncio.run(scenario())
    assert [process.measured for process in pool.processes] == [["a one", "a two"], ["a three"]]


def test_a_process_that_works_again_does_not_end_by_the_clock_of_its_idle_time() -> None:
    async def scenario() -> Pool:
        pool = Pool(1, idle_seconds=0.3)

        async def long(process: Process) -> bool:
            await asyncio.sleep(0.5)
            return process.killed

        await pool.run("a", "one")
        await asyncio.sleep(0.05)
        assert await pool.run("a", "two", long) is False
        return pool

    assert len(asyncio.run(scenario()).processes) == 1


def test_a_node_that_starts_slowly_is_no_hang() -> None:
    async def scenario() -> Pool:
        pool = Pool(1, timeout_seconds=0.1, start_seconds=0.4)
        assert await pool.run("a", "text") == "a text"
        return pool

    assert not asyncio.run(scenario()).failures


def test_a_process_that_cannot_be_started_is_a_failure() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)
        pool.refusals = ["bad label"]
        assert await pool.run("a", "text") == "a text"
        broken = Pool(1)
        broken.refusals = ["bad label"] * ATTEMPTS
        with pytest.raises(WorkFailedError, match="bad label"):
            await broken.run("b", "text")
        return pool

    asyncio.run(scenario())


def test_a_time_out_of_the_work_itself_keeps_its_cause() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)

        async def work(process: Process) -> str:
            raise TimeoutError("the storage does not answer")

        with pytest.raises(WorkFailedError, match="TimeoutError: the storage does not answer"):
            await pool.run("a", "text", work)
        return pool

    asyncio.run(scenario())


def test_lost_and_hung_work_is_done_by_another_process() -> None:
    async def scenario() -> tuple[Pool, object]:
        pool = Pool(1, timeout_seconds=0.1)

        async def work(process: Process) -> str:
            if process.number == 0:
                raise ConnectionError("the process is gone")
            if process.number == 1:
                await asyncio.sleep(60)
            return "measured"

        return pool, await pool.run("a", "text", work)

    pool, result = asyncio.run(scenario())
    assert result == "measured"
    assert [process.killed for process in pool.processes] == [True, True, False]
    assert "the process is gone" in pool.failures[0]
    assert "0.1 s" in pool.failures[1]


def test_what_fails_everywhere_names_each_cause_and_spares_the_rest() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)

        async def broken(process: Process) -> str:
            raise RuntimeError(f"cause {min(process.number, 1)}")

        results = await asyncio.gather(pool.run("a", "text", broken), pool.run("a", "task"), return_exceptions=True)
        assert isinstance(results[0], WorkFailedError)
        assert str(results[0]) == "RuntimeError: cause 0; RuntimeError: cause 1"
        assert results[1] == "a task"
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.failures) == ATTEMPTS
    assert "giving up" in pool.failures[-1]


def test_data_that_cannot_be_read_for_a_while_is_tried_again() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)

        async def read(process: Process) -> str:
            if process.number == 0:
                raise UnreachableError("evaluation.report.tasks: the data cannot be read")
            return "measured"

        assert await pool.run("a", "task", read) == "measured"
        return pool

    assert "2 more attempts" in asyncio.run(scenario()).failures[0]


@pytest.mark.parametrize("error", [BadInputError, NonFiniteLossError])
def test_what_would_come_again_is_not_tried_again(error: type[Exception]) -> None:
    async def scenario() -> Pool:
        pool = Pool(1)

        async def bad(process: Process) -> str:
            raise error("evaluation.report.tasks: no such data")

        with pytest.raises(error, match="no such data"):
            await pool.run("a", "task", bad)
        assert await pool.run("a", "text") == "a text"
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.processes) == 1
    assert not pool.failures


def test_the_load_is_told() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        await asyncio.gather(*(pool.run("a", str(unit)) for unit in range(5)))
        await asyncio.sleep(0)
        return pool

    loads = asyncio.run(scenario()).loads
    assert loads[0] == (3, 2)
    assert loads[-1] == (0, 0)
    assert [waiting for waiting, _ in loads] == sorted((waiting for waiting, _ in loads), reverse=True)
