"""A pool of evaluation processes on the cluster, owned by the driver.

The pool is one actor that starts evaluators on demand, up to a limit, and ends them when idle, so that their
nodes can leave. The driver creates it: an actor first created inside a trial would end with that trial.
"""

import asyncio
from collections.abc import Callable, Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shortened_llm.config import ResourcesConfig
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.units import Unit
from shortened_llm.logs import quiet_libraries
from shortened_llm.models.cpu import fair_threads, prepare_cpu
from shortened_llm.records import EvalScores, ModelRef
from shortened_llm.storage.store import Store

Progress = Callable[[str | None], None]
"""Called with what an evaluator is doing; with None when it is done with a model."""

# Longer than a short training: starting an evaluator again takes 10 s and more, and minutes where its node has left.
IDLE_SECONDS = 300.0
# A lost evaluator is started again, on another node if its own is gone, and repeats the model it was scoring.
RESTARTS = 2


@ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS)
class _Evaluator:
    def __init__(self, store: Store, dtype: str, batch_size: int, num_evaluators: int) -> None:
        quiet_libraries()
        self._store, self._dtype, self._batch_size = store, dtype, batch_size
        # Ray shows every GPU of the node to an actor that reserved none.
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        if self._device == "cpu":
            prepare_cpu(fair_threads(num_evaluators))

    def evaluate(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> EvalScores:
        try:
            return evaluate(
                ref,
                units,
                self._store,
                dtype=self._dtype,
                batch_size=self._batch_size,
                device=self._device,
                on_progress=on_progress,
            )
        finally:
            on_progress(None)


@ray.remote(num_cpus=0)
class _Pool:
    """Hands models to evaluators. Its methods are coroutines: many trials may wait at once."""

    def __init__(
        self, store: Store, dtype: str, batch_size: int, resources: ResourcesConfig, idle_seconds: float
    ) -> None:
        quiet_libraries()
        self._idle_seconds = idle_seconds
        self._arguments = (store, dtype, batch_size, resources.evaluators)
        self._options = {"num_cpus": resources.cpus_per_evaluator, "num_gpus": resources.gpus_per_evaluator}
        self._free = asyncio.Semaphore(resources.evaluators)
        self._idle: list[tuple[object, asyncio.TimerHandle]] = []

    async def evaluate(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> EvalScores:
        async with self._free:
            evaluator = self._take()
            try:
                scores = await evaluator.evaluate.remote(ref, units, on_progress)
            except ray.exceptions.RayActorError:
                raise  # Dead for good after its restarts: it must not go back to the idle ones.
            except Exception:
                self._give_back(evaluator)
                raise
            self._give_back(evaluator)
            return scores

    def _take(self):  # type: ignore[no-untyped-def]
        if self._idle:
            evaluator, timer = self._idle.pop()
            timer.cancel()
            return evaluator
        return _Evaluator.options(**self._options).remote(*self._arguments)  # type: ignore[attr-defined]

    def _give_back(self, evaluator: object) -> None:
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end, evaluator)
        self._idle.append((evaluator, timer))

    def _end(self, evaluator: object) -> None:
        self._idle = [(other, timer) for other, timer in self._idle if other is not evaluator]
        ray.kill(evaluator)


class EvaluationPool:
    """A handle on the pool that any process of the cluster can use."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    @classmethod
    def start(
        cls, store: Store, resources: ResourcesConfig, *, dtype: str, batch_size: int, may_idle: bool
    ) -> "EvaluationPool":
        """Create the pool; to be called by the driver, whose end also ends the pool.

        Args:
            may_idle: whether evaluators without work may stay for a while. If not, they end at once, so that scoring
                and training can have their place.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        idle_seconds = IDLE_SECONDS if may_idle else 0.0
        pool = _Pool.options(scheduling_strategy=here)  # type: ignore[attr-defined]
        return cls(pool.remote(store, dtype, batch_size, resources, idle_seconds))

    def submit(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> "ray.ObjectRef[EvalScores]":
        """Begin to score a model."""
        return self._actor.evaluate.remote(ref, units, on_progress)  # type: ignore[attr-defined]

    def evaluate(self, ref: ModelRef, units: Sequence[Unit], on_progress: Progress) -> EvalScores:
        """Score a model and wait for the result."""
        return self.result(self.submit(ref, units, on_progress))

    def result(self, submitted: "ray.ObjectRef[EvalScores]") -> EvalScores:
        """Wait for the scores of a submitted model."""
        return ray.get(submitted)
