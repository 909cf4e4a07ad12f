"""Which process measures what, and what happens when one is lost, hung or broken."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from shortened_llm.attempts import ATTEMPTS, WorkFailedError
from shortened_llm.errors import BadInputError, UnreachableError
from shortened_llm.evaluation import evaluators
from shortened_llm.evaluation.evaluators import Evaluators


@dataclass(eq=False)
class Process:
    """An evaluator in this process: it keeps what it measured."""

    number: int
    measured: list[str] = field(default_factory=list)
    killed: bool = False
    start_seconds: float = 0.0
    signs_of_life: int = 0

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
        self.evaluators = Evaluators(
            self._start, most=most, idle_seconds=idle_seconds, timeout_seconds=timeout_seconds,
            on_load=lambda waiting, busy: self.loads.append((waiting, busy)),
        )  # fmt: skip

    def _start(self) -> Process:
        if self.refusals:
            raise ValueError(self.refusals.pop())
        self.processes.append(Process(len(self.processes), start_seconds=self.start_seconds))
        return self.processes[-1]

    async def run(
        self,
        model: str,
        name: str,
        work: Callable[[Process], Awaitable[object]] | None = None,
        *,
        size: float = math.inf,
    ) -> object:
        async def measure(process: Process) -> object:
            process.measured.append(f"{model} {name}")
            if work is None:
                await asyncio.sleep(0.01)
                return f"{model} {name}"
            return await work(process)

        return await self.evaluators.run(name, model, measure, size=size, on_failure=self.failures.append)

    async def measure_parts(self, model: str, sizes: list[int]) -> list[object]:
        """A text whose parts take 0.01 s for each token, in their order."""

        def part(number: int, size: int) -> Awaitable[object]:
            async def measure(process: Process) -> int:
                await asyncio.sleep(0.01 * size)
                return number

            return self.run(model, f"part {number}", measure, size=size)

        return await asyncio.gather(*(part(number, size) for number, size in enumerate(sizes)))


def test_a_process_keeps_to_its_model_and_takes_another_when_it_is_done() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        work = [pool.run(model, str(unit)) for model in "ab" for unit in range(4)]
        assert await asyncio.gather(*work) == [f"{model} {unit}" for model in "ab" for unit in range(4)]
        await asyncio.gather(*(pool.run("c", str(unit)) for unit in range(4)))
        return pool

    pool = asyncio.run(scenario())
    assert len(pool.processes) == 2
    first, second = (process.measured for process in pool.processes)
    assert first[:4] == [f"a {unit}" for unit in range(4)]
    assert second[:4] == [f"b {unit}" for unit in range(4)]
    assert sorted(first[4:] + second[4:]) == [f"c {unit}" for unit in range(4)]
    assert len(first) > 4  # both took part
    assert len(second) > 4


def test_parts_of_one_text_are_measured_by_several_and_come_back_in_order() -> None:
    async def scenario() -> Pool:
        pool = Pool(3)
        assert await pool.measure_parts("a", [5] * 12) == list(range(12))
        return pool

    assert [len(process.measured) for process in asyncio.run(scenario()).processes] == [4, 4, 4]


def test_the_longest_go_first_and_what_is_whole_before_them() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)
        await asyncio.gather(pool.measure_parts("a", [1, 3, 2, 3]), pool.run("a", "task"))
        return pool

    (process,) = asyncio.run(scenario()).processes
    assert process.measured == ["a task", "a part 1", "a part 3", "a part 2", "a part 0"]


def test_what_follows_at_once_comes_before_another_model() -> None:
    """Such as the parts of a text that was just cut."""

    async def scenario() -> Pool:
        pool = Pool(1)

        async def text() -> None:
            await pool.run("a", "cut")
            await pool.measure_parts("a", [1, 1])

        await asyncio.gather(text(), pool.run("b", "task"))
        return pool

    (process,) = asyncio.run(scenario()).processes
    assert process.measured == ["a cut", "a part 0", "a part 1", "b task"]


def test_no_more_processes_are_started_than_work_waits() -> None:
    async def scenario() -> Pool:
        pool = Pool(6)
        await pool.measure_parts("a", [1, 1])
        return pool

    assert len(asyncio.run(scenario()).processes) == 2


def test_work_does_not_wait_for_a_process_that_starts_slowly() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)
        await pool.run("a", "one")
        pool.start_seconds = 30.0  # a node has to start
        async with asyncio.timeout(5):
            assert await pool.measure_parts("a", [1, 1, 1]) == [0, 1, 2]
            assert await pool.run("b", "two") == "b two"
        return pool

    pool = asyncio.run(scenario())
    assert [process.killed for process in pool.processes] == [False, True]
    assert not pool.processes[1].measured


def test_a_process_that_cannot_be_started_beside_others_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators, "PAUSE_SECONDS", 0.2)

    async def scenario() -> Pool:
        pool = Pool(2)
        await pool.run("a", "one")
        pool.refusals = ["no such node"] * 2
        assert await pool.measure_parts("a", [5] * 20) == list(range(20))
        return pool

    pool = asyncio.run(scenario())
    # One try after each pause; then another process could be had.
    assert pool.failures == ["an evaluator could not be started (ValueError: no such node); others go on"] * 2
    assert len(pool.processes) == 2
    assert pool.processes[1].measured


def test_one_start_that_fails_is_one_attempt_of_what_waits() -> None:
    async def scenario() -> Pool:
        pool = Pool(4)
        pool.refusals = ["bad label"] * 4
        work = [pool.run("a", str(unit)) for unit in range(4)]
        assert await asyncio.gather(*work) == [f"a {unit}" for unit in range(4)]
        return pool

    failures = asyncio.run(scenario()).failures
    assert all(f"{unit} failed (ValueError: bad label); 2 more attempts" in failures for unit in range(4))
    assert not any("1 more attempts" in failure for failure in failures)


def test_without_any_process_work_fails() -> None:
    async def scenario() -> None:
        pool = Pool(2)
        pool.refusals = ["bad label"] * 100
        async with asyncio.timeout(5):
            results = await asyncio.gather(*(pool.run("a", str(i)) for i in range(3)), return_exceptions=True)
        assert [(type(result), str(result)) for result in results] == [(WorkFailedError, "ValueError: bad label")] * 3
        pool.refusals.clear()
        assert await pool.run("a", "text") == "a text"

    asyncio.run(scenario())


def test_a_lost_part_is_done_by_another_process() -> None:
    async def scenario() -> Pool:
        pool = Pool(2)

        def part(number: int) -> Awaitable[object]:
            async def measure(process: Process) -> int:
                if process.number == 0 and len(process.measured) == 3:
                    raise ConnectionError("the process is gone")
                await asyncio.sleep(0.01)
                return number

            return pool.run("a", f"part {number}", measure)

        assert await asyncio.gather(*(part(number) for number in range(10))) == list(range(10))
        return pool

    pool = asyncio.run(scenario())
    assert [process.killed for process in pool.processes] == [True, False, False]
    assert len(pool.failures) == 1
    assert "ConnectionError: the process is gone); 2 more attempts" in pool.failures[0]


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
    assert "no sign of life within 0.1 s" in pool.failures[1]


def test_work_that_gives_signs_of_life_is_not_hung() -> None:
    async def scenario() -> Pool:
        pool = Pool(1, timeout_seconds=0.1)

        async def work(process: Process) -> str:
            for _ in range(10):
                await asyncio.sleep(0.04)
                process.signs_of_life += 1
            return "measured"

        assert await pool.run("a", "text", work) == "measured"
        return pool

    assert not asyncio.run(scenario()).failures


def test_work_that_is_no_longer_wanted_is_not_done() -> None:
    """The other parts of a text of which one has failed for good."""

    async def scenario() -> Pool:
        pool = Pool(1)

        async def long(process: Process) -> None:
            await asyncio.sleep(30)

        running = asyncio.ensure_future(pool.run("a", "running", long))
        waiting = asyncio.ensure_future(pool.run("a", "waiting"))
        while not pool.processes or not pool.processes[0].measured:
            await asyncio.sleep(0.01)
        running.cancel()
        waiting.cancel()
        async with asyncio.timeout(5):
            assert await pool.run("a", "next") == "a next"
        return pool

    pool = asyncio.run(scenario())
    assert [process.killed for process in pool.processes] == [True, False]  # nobody waits for what the first does
    assert pool.processes[1].measured == ["a next"]


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


def test_bad_input_costs_no_process() -> None:
    async def scenario() -> Pool:
        pool = Pool(1)

        async def bad(process: Process) -> str:
            raise BadInputError("evaluation.report.tasks: no such data")

        with pytest.raises(BadInputError, match="no such data"):
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
        await asyncio.sleep(2 * evaluators.GATHER_SECONDS)
        return pool

    loads = asyncio.run(scenario()).loads
    assert (3, 2) in loads
    assert loads[-1] == (0, 0)
    assert all(busy <= 2 for _, busy in loads)
    assert [waiting for waiting, _ in loads] == sorted((waiting for waiting, _ in loads), reverse=True)
