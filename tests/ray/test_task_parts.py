"""A task that evaluators of a real cluster share."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.config import ResourcesConfig, TaskConfig
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.measure import LoadedModels
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.records import ModelRef
from shortened_llm.storage.store import Store
from tests.evaluation.local_tasks import write_tasks
from tests.ray.conftest import Cluster
from tests.ray.evaluation_driver import Order
from tests.ray.test_evaluation import run_driver


@pytest.mark.timeout(300)
def test_evaluators_share_a_task_without_changing_a_digit(
    tiny_model: ModelRef, tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    units = tuple(
        TaskUnit(config=TaskConfig(task=task), directory=str(tmp_path / "tasks"), limit=None)
        for task in ("group_local", "words_local")
    )
    order = Order(
        models=(tiny_model, tiny_model.view((0, 1, 2, 7))),
        units=units,
        store=Store.at(str(tmp_path / "results")),
        resources=ResourcesConfig(evaluators=2, cpus_per_evaluator=0.5, evaluation_timeout_seconds=120),
    )
    found, said = run_driver(order, tmp_path, cluster)
    assert re.search(r"local, part 2 of 2", said)
    for ref, scores in zip(order.models, found, strict=True):
        alone = evaluate(
            ref, units, Store.at(str(tmp_path / "alone")), LoadedModels("float32", "cpu"),
            batch_size=2, on_progress=print,
        )  # fmt: skip
        assert not scores.missing
        assert [replace(score, results_url=None) for score in scores.tasks] == [
            replace(score, results_url=None) for score in alone.tasks
        ]
        for score in scores.tasks:
            assert score.results_url is not None
            assert Path(score.results_url.removeprefix("file://")).is_file()
