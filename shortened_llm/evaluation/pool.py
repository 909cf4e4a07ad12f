"""A pool of evaluation processes on the cluster, owned by the driver.

The pool is one actor that starts evaluators on demand, up to a limit, and ends them when idle, so that their
nodes can leave. The driver creates it: an actor first created inside a trial would end with that trial.
"""

import asyncio
import itertools
import math
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.attempts import WorkFailedError
from shortened_llm.cluster_metrics import BUSY_EVALUATORS, EVALUATION_QUEUE_LENGTH, Gauges
from shortened_llm.config import ResourcesConfig
from shortened_llm.errors import BadInputError, last_line, original
from shortened_llm.evaluation.evaluate import measure, read_score, store_score
from shortened_llm.evaluation.evaluators import Evaluators
from shortened_llm.evaluation.subject import LoadedModels, Subject
from shortened_llm.evaluation.units import TextPart, TextUnit, Unit, WholeUnit, score_identity, unit_fingerprint
from shortened_llm.fingerprint import fingerprint
from shortened_llm.logs import LOGGER, Listener, about, setup_process
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.records import EvalScores, MissingScore, ModelRef, Score
from shortened_llm.storage.store import Store

T = TypeVar("T")


# Longer than a short training: starting an evaluator again takes 10 s and more, and minutes where its node has left.
IDLE_SECONDS = 300.0
# Long enough for what follows at once, such as the next part of a text.
HANDOVER_SECONDS = 1.0
NODE_POLL_SECONDS = 10.0
# An evaluator sends no more signs of life than this.
SECONDS_BETWEEN_SIGNS = 1.0
# Models being scored or waiting for it; more are queued by Ray.
MOST_CALLS = 1000


@ray.remote(max_restarts=0)  # the pool starts another one, where there is room by then
class _Evaluator:
    """Measures in its main thread, as tasks that set alarms need: so it has no thread that could be asked for signs of
    life, and sends them."""

    def __init__(self, number: int, pool: Any, store: Store, dtype: str, batch_size: int, num_evaluators: int) -> None:
        setup_process()
        store.enter()
        self._number, self._pool = number, pool
        self._store, self._batch_size = store, batch_size
        self._last_sign = 0.0
        # Ray shows every GPU of the node to an actor that reserved none.
        gpus = ray.get_gpu_ids()
        if not gpus:
            prepare_cpu(fair_threads(num_evaluators))
        self._loaded = LoadedModels(dtype, "cuda" if gpus else "cpu", self._on_pass, num_gpus=max(1, len(gpus)))

    def ready(self) -> None:
        """Returns once the process runs."""

    def parts(self, ref: ModelRef, unit: TextUnit, listener: Listener) -> list[TextPart]:
        with about(listener):
            LOGGER.info("%s", unit.name)
            return unit.parts(self._subject(ref))

    def measure(self, ref: ModelRef, work: TextPart | WholeUnit, listener: Listener) -> Any:
        with about(listener):
            LOGGER.info("%s", work.name)
            return measure(work, self._subject(ref))

    def _subject(self, ref: ModelRef) -> Subject:
        return Subject(ref=ref, loaded=self._loaded, store=self._store, batch_size=self._batch_size)

    def _on_pass(self) -> None:
        if (now := time.monotonic()) - self._last_sign >= SECONDS_BETWEEN_SIGNS:
            self._last_sign = now
            self._pool.sign_of_life.remote(self._number)


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
    """An evaluator as the pool knows it."""

    def __init__(self, actor: Any, resources: ResourcesConfig) -> None:
        self.actor, self._resources = actor, resources
        self.signs_of_life = 0

    async def ready(self) -> None:
        """Returns once the process runs. As long as some node could hold it, others may use that one: it waits.

        Raises:
            NoNodeError: no running node could hold it for `resources.node_wait_seconds`.
        """
        ready = asyncio.wrap_future(self.actor.ready.remote().future())
        limit = self._resources.node_wait_seconds
        last_seen = time.monotonic()
        while not (await asyncio.wait({ready}, timeout=min(NODE_POLL_SECONDS, limit)))[0]:
            if await asyncio.to_thread(_some_node_holds, self._resources):
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen >= limit:
                raise NoNodeError(
                    f"no node for an evaluator of {_demand(self._resources)} within resources.node_wait_seconds "
                    f"({limit:g} s)"
                )
        ready.result()

    def kill(self) -> None:
        ray.kill(self.actor)


@ray.remote(num_cpus=0, max_concurrency=MOST_CALLS, concurrency_groups={"signs": MOST_CALLS})
class _Pool:
    """Hands out the work on models and puts the results together. Its methods are coroutines: many trials may wait at
    once, and their number keeps no sign of life from being heard."""

    def __init__(
        self,
        experiment: str,
        store: Store,
        dtype: str,
        batch_size: int,
        resources: ResourcesConfig,
        idle_seconds: float,
    ) -> None:
        setup_process()
        store.enter()
        self._gauges = Gauges(experiment)
        self._store, self._dtype, self._batch_size, self._resources = store, dtype, batch_size, resources
        self._scoring: dict[str, asyncio.Future[Score]] = {}
        self._started: weakref.WeakValueDictionary[int, _Remote] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self._evaluators = Evaluators(
            self._start_evaluator,
            most=resources.evaluators,
            idle_seconds=idle_seconds,
            timeout_seconds=resources.evaluation_timeout_seconds,
            on_load=self._measure_load,
        )
        self._measure_load(0, 0)

    def _start_evaluator(self) -> _Remote:
        resources, number = self._resources, next(self._numbers)
        actor = _Evaluator.options(  # type: ignore[attr-defined]
            num_cpus=resources.cpus_per_evaluator,
            num_gpus=resources.gpus_per_evaluator,
            label_selector=resources.evaluator_labels or None,
        ).remote(
            number, ray.get_runtime_context().current_actor, self._store, self._dtype, self._batch_size,
            resources.evaluators,
        )  # fmt: skip
        self._started[number] = evaluator = _Remote(actor, resources)
        return evaluator

    def _measure_load(self, waiting: int, busy: int) -> None:
        self._gauges.set(EVALUATION_QUEUE_LENGTH, waiting)
        self._gauges.set(BUSY_EVALUATORS, busy)

    @ray.method(concurrency_group="signs")
    async def sign_of_life(self, number: int) -> None:
        """An evaluator says that it makes progress."""
        if evaluator := self._started.get(number):
            evaluator.signs_of_life += 1

    async def evaluate(self, ref: ModelRef, units: Sequence[Unit], listener: Listener) -> EvalScores:
        listener("waiting for an evaluator")
        try:
            return EvalScores.of(await asyncio.gather(*(self._score(ref, unit, listener) for unit in units)))
        finally:
            listener(None)

    async def _score(self, ref: ModelRef, unit: Unit, listener: Listener) -> Score | MissingScore:
        """Measured once, however many trials ask for it at a time. One that cannot be had costs no other."""
        key = fingerprint(score_identity(ref, unit, self._dtype))
        if (scoring := self._scoring.get(key)) is None:
            scoring = asyncio.ensure_future(self._read_or_measure(ref, unit, listener))
            self._scoring[key] = scoring
            scoring.add_done_callback(lambda _: self._scoring.pop(key))
        try:
            return await asyncio.shield(scoring)
        except Exception as error:
            is_bad_input = isinstance(error, BadInputError)
            cause = str(original(error)) if is_bad_input or isinstance(error, WorkFailedError) else last_line(error)
            lost = unit_fingerprint(unit, self._dtype)
            return MissingScore(unit=lost, name=unit.name, cause=cause, is_bad_input=is_bad_input)

    async def _read_or_measure(self, ref: ModelRef, unit: Unit, listener: Listener) -> Score:
        stored = await asyncio.to_thread(read_score, ref, unit, self._store, self._dtype)
        if stored is not None:
            return stored
        score = await self._measure(ref, unit, listener)
        return await asyncio.to_thread(store_score, ref, unit, score, self._store, self._dtype)

    async def _measure(self, ref: ModelRef, unit: Unit, listener: Listener) -> Score:
        model = fingerprint(ref.identity)

        def run(name: str, work: Callable[[_Remote], Awaitable[T]], size: float = math.inf) -> Awaitable[T]:
            return self._evaluators.run(name, model, work, size=size, on_failure=listener.note)

        def measured(work: TextPart | WholeUnit) -> Awaitable[Any]:
            size = work.num_tokens if isinstance(work, TextPart) else math.inf
            return run(work.name, lambda evaluator: evaluator.actor.measure.remote(ref, work, listener), size)

        if not isinstance(unit, TextUnit):
            score: Score = await measured(unit)
            return score
        parts = await run(unit.name, lambda evaluator: evaluator.actor.parts.remote(ref, unit, listener))
        measuring = [asyncio.ensure_future(measured(part)) for part in parts]
        try:
            return await asyncio.to_thread(unit.join, await asyncio.gather(*measuring))
        finally:
            for part in measuring:
                part.cancel()  # the others, where one has failed for good


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

    def submit(self, ref: ModelRef, units: Sequence[Unit], listener: Listener) -> "ray.ObjectRef[EvalScores]":
        """Begin to score a model."""
        return self._actor.evaluate.remote(ref, units, listener)  # type: ignore[attr-defined]

    def evaluate(self, ref: ModelRef, units: Sequence[Unit], listener: Listener) -> EvalScores:
        """Score a model and wait for the result."""
        return self.result(self.submit(ref, units, listener))

    def result(self, submitted: "ray.ObjectRef[EvalScores]") -> EvalScores:
        """Wait for the scores of a submitted model."""
        return ray.get(submitted)
