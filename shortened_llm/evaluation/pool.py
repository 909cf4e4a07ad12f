"""A pool of evaluation processes on the cluster, owned by the driver.

The pool is one actor that starts evaluators on demand, up to a limit, and ends them when idle, so that their
nodes can leave. The driver creates it: an actor first created inside a trial would end with that trial.
"""

import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.cluster_metrics import BUSY_EVALUATORS, EVALUATION_QUEUE_LENGTH, Gauges
from shortened_llm.config import ResourcesConfig
from shortened_llm.errors import BadInputError, last_line, original
from shortened_llm.evaluation.chunks import Chunks
from shortened_llm.evaluation.dispatch import Dispatcher, WorkFailedError
from shortened_llm.evaluation.evaluate import gather_scores
from shortened_llm.evaluation.measure import (
    LoadedModels,
    Part,
    finish_score,
    join_task_parts,
    measure_part,
    read_score,
    score_identity,
)
from shortened_llm.evaluation.task_requests import TaskPart
from shortened_llm.evaluation.units import Score, TaskUnit, Unit, unit_fingerprint
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.records import EvalScores, MissingScore, ModelRef, TaskScore
from shortened_llm.storage.store import Store


class Progress(Protocol):
    """Called with what an evaluator is doing; with None when it is done with a model."""

    def __call__(self, line: str | None) -> None: ...

    def note(self, line: str) -> None:
        """Say what must not be missed."""


# Longer than a short training: starting an evaluator again takes 10 s and more, and minutes where its node has left.
IDLE_SECONDS = 300.0
# Long enough for a task's parts to be joined by a process that measured one.
HANDOVER_SECONDS = 1.0
NODE_POLL_SECONDS = 10.0
# Models being scored or waiting for it; more are queued by Ray.
MOST_CALLS = 1000


@ray.remote(max_restarts=0)  # the pool starts another one, where there is room by then
class _Evaluator:
    def __init__(self, store: Store, dtype: str, batch_size: int, num_evaluators: int) -> None:
        quiet_libraries()
        store.enter()
        self._store, self._batch_size = store, batch_size
        # Ray shows every GPU of the node to an actor that reserved none.
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        if device == "cpu":
            prepare_cpu(fair_threads(num_evaluators))
        self._loaded = LoadedModels(dtype, device)

    def ready(self) -> None:
        """Returns once the process runs."""

    def measure(self, ref: ModelRef, unit: Unit, chunks: "_RemoteChunks", on_progress: Progress) -> Part:
        on_progress(unit.name)
        return measure_part(
            ref, unit, self._loaded, self._store,
            batch_size=self._batch_size, take=chunks.take, sign_of_life=chunks.sign_of_life, on_note=on_progress.note,
        )  # fmt: skip

    def join(self, ref: ModelRef, unit: TaskUnit, parts: Sequence[TaskPart], on_progress: Progress) -> TaskScore | None:
        on_progress(f"{unit.name}, joining {len(parts)} parts")
        return join_task_parts(ref, unit, parts, self._store, self._loaded.dtype)


@dataclass(frozen=True)
class _RemoteChunks:
    """A unit's chunks, of which an evaluator takes some from the pool."""

    pool: Any
    unit: str
    taker: int

    def take(self, kind: str, digest: str, count: int) -> int | None:
        number: int | None = ray.get(self.pool.take.remote(self.unit, self.taker, kind, digest, count))
        return number

    def sign_of_life(self) -> None:
        self.pool.sign_of_life.remote(self.unit, self.taker)


class NoNodeError(RuntimeError):
    """There is no node on which an evaluator could run."""


def _demand(resources: ResourcesConfig) -> dict[str, float]:
    return {"CPU": resources.cpus_per_evaluator, "GPU": resources.gpus_per_evaluator}


def _some_node_holds(resources: ResourcesConfig) -> bool:
    """Whether an evaluator has its place on some running node, be it taken or free."""
    return any(
        node["Alive"]
        and resources.evaluator_labels.items() <= node["Labels"].items()
        and all(node["Resources"].get(kind, 0) >= needed for kind, needed in _demand(resources).items())
        for node in ray.nodes()
    )


class _Remote:
    """An evaluator as the dispatcher knows it."""

    def __init__(self, actor: object, resources: ResourcesConfig) -> None:
        self._actor, self._resources = actor, resources

    async def ready(self) -> None:
        """Returns once the process runs. As long as some node could hold it, others may use that one: it waits.

        Raises:
            NoNodeError: no running node could hold it for `resources.node_wait_seconds`.
        """
        ready = asyncio.wrap_future(self._actor.ready.remote().future())  # type: ignore[attr-defined]
        limit = self._resources.node_wait_seconds
        missing_since: float | None = None
        while not (await asyncio.wait({ready}, timeout=min(NODE_POLL_SECONDS, limit)))[0]:
            now = time.monotonic()
            if await asyncio.to_thread(_some_node_holds, self._resources):
                missing_since = None
            elif missing_since is None:
                missing_since = now
            elif now - missing_since >= limit:
                raise NoNodeError(
                    f"no node for an evaluator of {_demand(self._resources)} within resources.node_wait_seconds "
                    f"({limit:g} s)"
                )
        ready.result()

    async def measure(self, ref: ModelRef, unit: Unit, chunks: _RemoteChunks, on_progress: Progress) -> Part:
        return await self._actor.measure.remote(ref, unit, chunks, on_progress)  # type: ignore[attr-defined]

    async def join(
        self, ref: ModelRef, unit: TaskUnit, parts: Sequence[TaskPart], on_progress: Progress
    ) -> TaskScore | None:
        return await self._actor.join.remote(ref, unit, parts, on_progress)  # type: ignore[attr-defined]

    def kill(self) -> None:
        ray.kill(self._actor)


@ray.remote(num_cpus=0, max_concurrency=MOST_CALLS, concurrency_groups={"chunks": MOST_CALLS})
class _Pool:
    """Hands out the work on models and puts the results together. Its methods are coroutines: many trials may wait at
    once, without keeping evaluators from their chunks."""

    def __init__(
        self,
        experiment: str,
        store: Store,
        dtype: str,
        batch_size: int,
        resources: ResourcesConfig,
        idle_seconds: float,
    ) -> None:
        quiet_libraries()
        store.enter()
        self._gauges = Gauges(experiment)
        self._store, self._dtype = store, dtype
        self._scoring: dict[str, asyncio.Future[Score]] = {}
        self._chunks: dict[str, Chunks] = {}
        options = {
            "num_cpus": resources.cpus_per_evaluator,
            "num_gpus": resources.gpus_per_evaluator,
            "label_selector": resources.evaluator_labels or None,
        }
        arguments = (store, dtype, batch_size, resources.evaluators)
        self._dispatcher = Dispatcher(
            lambda: _Remote(_Evaluator.options(**options).remote(*arguments), resources),  # type: ignore[attr-defined]
            most=resources.evaluators,
            idle_seconds=idle_seconds,
            timeout_seconds=resources.evaluation_timeout_seconds,
            on_load=self._measure_load,
        )
        self._measure_load(0, 0)

    def _measure_load(self, waiting: int, busy: int) -> None:
        self._gauges.set(EVALUATION_QUEUE_LENGTH, waiting)
        self._gauges.set(BUSY_EVALUATORS, busy)

    @ray.method(concurrency_group="chunks")
    async def take(self, unit: str, taker: int, kind: str, digest: str, count: int) -> int | None:
        """As `Chunks.take`; None also when the unit has been measured, or has failed."""
        chunks = self._chunks.get(unit)
        return None if chunks is None else chunks.take(taker, kind, digest, count)

    @ray.method(concurrency_group="chunks")
    async def sign_of_life(self, unit: str, taker: int) -> None:
        """As `Chunks.sign_of_life`."""
        if unit in self._chunks:
            self._chunks[unit].sign_of_life(taker)

    async def evaluate(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> EvalScores:
        on_progress("waiting for an evaluator")
        try:
            return gather_scores(await asyncio.gather(*(self._score(ref, unit, on_progress) for unit in units)))
        finally:
            on_progress(None)

    async def _score(self, ref: ModelRef, unit: Unit, on_progress: Progress) -> Score | MissingScore:
        """Measured once, however many trials ask for it at a time. One that cannot be had costs no other."""
        key = fingerprint(score_identity(ref, unit, self._dtype))
        if (scoring := self._scoring.get(key)) is None:
            scoring = asyncio.ensure_future(self._read_or_measure(ref, unit, on_progress))
            self._scoring[key] = scoring
            scoring.add_done_callback(lambda _: self._scoring.pop(key))
        try:
            return await asyncio.shield(scoring)
        except BadInputError as error:
            return self._missing(unit, str(original(error)), is_bad_input=True)
        except Exception as error:
            return self._missing(unit, str(error) if isinstance(error, WorkFailedError) else last_line(error))

    def _missing(self, unit: Unit, cause: str, *, is_bad_input: bool = False) -> MissingScore:
        fingerprint = unit_fingerprint(unit, self._dtype)
        return MissingScore(unit=fingerprint, name=unit.name, cause=cause, is_bad_input=is_bad_input)

    async def _read_or_measure(self, ref: ModelRef, unit: Unit, on_progress: Progress) -> Score:
        stored = await asyncio.to_thread(read_score, ref, unit, self._store, self._dtype)
        if stored is not None:
            return stored
        measured = await self._measure(ref, unit, on_progress)
        answers = [part for part in measured if isinstance(part, TaskPart)]
        whole: list[Part] = [part for part in measured if not isinstance(part, TaskPart)]
        if isinstance(unit, TaskUnit) and not whole:
            whole = await self._join(ref, unit, answers, on_progress)
        return await asyncio.to_thread(finish_score, ref, unit, whole, self._store, self._dtype)

    async def _measure(
        self, ref: ModelRef, unit: Unit, on_progress: Progress, *, may_be_shared: bool = True
    ) -> list[Part]:
        loop = asyncio.get_running_loop()
        chunks = Chunks(on_open=lambda: loop.call_soon_threadsafe(self._dispatcher.dispatch))
        key = uuid.uuid4().hex
        here = ray.get_runtime_context().current_actor

        def measure(evaluator: _Remote, taker: int) -> Coroutine[Any, Any, Part]:
            return evaluator.measure(ref, unit, _RemoteChunks(here, key, taker), on_progress)

        self._chunks[key] = chunks
        try:
            return await self._dispatcher.run(
                fingerprint(ref.identity), unit.name, measure,
                chunks=chunks, is_divisible=unit.is_divisible and may_be_shared, on_failure=on_progress.note,
            )  # fmt: skip
        finally:
            del self._chunks[key]

    async def _join(
        self, ref: ModelRef, unit: TaskUnit, answers: Sequence[TaskPart], on_progress: Progress
    ) -> list[Part]:
        def join(evaluator: _Remote, _: int) -> Coroutine[Any, Any, TaskScore | None]:
            return evaluator.join(ref, unit, answers, on_progress)

        (score,) = await self._dispatcher.run(None, unit.name, join, on_failure=on_progress.note)
        if score is not None:
            return [score]
        on_progress.note(f"{unit.name}: it asks other things each time that it is set up; measuring it in one process")
        return await self._measure(ref, unit, on_progress, may_be_shared=False)


class EvaluationPool:
    """A handle on the pool that any process of the cluster can use."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    @classmethod
    def start(
        cls, experiment: str, store: Store, resources: ResourcesConfig, *, dtype: str, batch_size: int, may_idle: bool
    ) -> "EvaluationPool":
        """Create the pool; to be called by the driver, whose end also ends the pool.

        Args:
            experiment: its name in the metrics.
            may_idle: whether evaluators without work may stay for a while. If not, they end within a second or so,
                so that scoring and training can have their place.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        idle_seconds = IDLE_SECONDS if may_idle else HANDOVER_SECONDS
        pool = _Pool.options(scheduling_strategy=here)  # type: ignore[attr-defined]
        return cls(pool.remote(experiment, store, dtype, batch_size, resources, idle_seconds))

    def submit(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> "ray.ObjectRef[EvalScores]":
        """Begin to score a model."""
        return self._actor.evaluate.remote(ref, units, on_progress)  # type: ignore[attr-defined]

    def evaluate(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> EvalScores:
        """Score a model and wait for the result."""
        return self.result(self.submit(ref, units, on_progress))

    def result(self, submitted: "ray.ObjectRef[EvalScores]") -> EvalScores:
        """Wait for the scores of a submitted model."""
        return ray.get(submitted)
