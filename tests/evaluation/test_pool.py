"""How the pool waits for an evaluator's process."""

import asyncio
import math
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from shortened_llm.config import ResourcesConfig
from shortened_llm.evaluation import pool
from shortened_llm.evaluation.pool import NoNodeError, _Remote

RESOURCES = ResourcesConfig(gpus_per_evaluator=1, evaluator_labels={"pool": "scoring"}, node_wait_seconds=0.2)
WITH_GPU = {"Alive": True, "Labels": {"pool": "scoring"}, "Resources": {"CPU": 8.0, "GPU": 1.0}}


def remote(ready: "Future[None]") -> _Remote:
    """An evaluator whose process runs once `ready` is done."""
    answer = SimpleNamespace(future=lambda: ready)
    return _Remote(SimpleNamespace(ready=SimpleNamespace(remote=lambda: answer)), RESOURCES)


@pytest.mark.parametrize(
    "node",
    [WITH_GPU | {"Alive": False}, WITH_GPU | {"Labels": {}}, WITH_GPU | {"Resources": {"CPU": 8.0}}],
    ids=["lost", "other labels", "no GPU"],
)
def test_an_evaluator_that_no_node_can_hold_is_given_up(node: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.ray, "nodes", lambda: [node])
    with pytest.raises(NoNodeError, match=r"'GPU': 1\.0.* within resources\.node_wait_seconds \(0\.2 s\)"):
        asyncio.run(asyncio.wait_for(remote(Future()).ready(), timeout=10))


def test_one_whose_node_is_busy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.ray, "nodes", lambda: [WITH_GPU])
    ready: Future[None] = Future()

    async def scenario() -> None:
        asyncio.get_running_loop().call_later(1.0, ready.set_result, None)
        await asyncio.wait_for(remote(ready).ready(), timeout=10)

    asyncio.run(scenario())


def test_signs_of_life_reach_the_evaluator_that_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of actors without their Ray: many forward passes are few messages."""
    pool_class, evaluator_class = (one.__ray_metadata__.modified_class for one in (pool._Pool, pool._Evaluator))
    hearing, evaluators = pool_class.__new__(pool_class), [remote(Future()), remote(Future())]
    hearing._started = dict(enumerate(evaluators))
    sent: list[int] = []
    measuring = evaluator_class.__new__(evaluator_class)
    measuring._number, measuring._last_sign = 0, -math.inf
    measuring._pool = SimpleNamespace(sign_of_life=SimpleNamespace(remote=sent.append))
    seconds = iter([10.0, 10.2, 10.4, 11.5])
    with monkeypatch.context() as clock:
        clock.setattr(pool.time, "monotonic", lambda: next(seconds))
        for _ in range(4):
            measuring._on_pass()
    for number in (*sent, 7):  # of one that was ended since
        asyncio.run(hearing.sign_of_life(number))
    assert [one.signs_of_life for one in evaluators] == [2, 0]
