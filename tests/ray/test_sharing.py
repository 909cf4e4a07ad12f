"""A task and a text that evaluators of a real cluster share."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from shortened_llm.config import ResourcesConfig, TaskConfig
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.measure import LoadedModels
from shortened_llm.evaluation.units import TaskUnit, Unit
from shortened_llm.records import ModelRef
from shortened_llm.storage.store import Store
from tests.evaluation.local_tasks import accuracy, write_tasks
from tests.ray.conftest import Cluster
from tests.ray.evaluation_driver import Order
from tests.ray.test_evaluation import run_driver, text_unit

# lm-eval asks for the first text when it loads a task, then for each when it sets the task up.
FICKLE = """
calls = 0


def text(doc):
    global calls
    calls += 1
    return doc["text"] + " again" * (calls > 1 + {rows})
"""


def write_fickle_task(directory: Path) -> None:
    """`fickle_local.yaml`: processes that set it up once ask the same; one that does so again asks other things."""
    rows = directory / "endings.jsonl"
    (directory / "fickle.py").write_text(FICKLE.format(rows=len(rows.read_text().splitlines())))
    fickle = accuracy("", str(rows), by=["acc"])
    del fickle["doc_to_text"]
    (directory / "fickle_local.yaml").write_text(
        yaml.safe_dump({"task": "fickle_local", **fickle}) + "doc_to_text: !function fickle.text\n"
    )


@pytest.mark.timeout(300)
def test_evaluators_share_what_there_is_without_changing_a_digit(
    tiny_model: ModelRef, tiny_assets: Path, tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    rows = tmp_path / "tasks/endings.jsonl"
    rows.write_text(rows.read_text() * 100)  # seconds of work, so that the second process finds some
    write_fickle_task(tmp_path / "tasks")
    units: tuple[Unit, ...] = (
        TaskUnit(config=TaskConfig(task="endings_local"), directory=str(tmp_path / "tasks"), limit=None),
        TaskUnit(config=TaskConfig(task="words_local"), directory=str(tmp_path / "tasks"), limit=None),
        text_unit(tiny_assets / "texts/stories.jsonl", 64, segments=800),
        TaskUnit(config=TaskConfig(task="fickle_local"), directory=str(tmp_path / "tasks"), limit=None),
    )
    endings, words, text, fickle = units
    order = Order(
        models=(tiny_model,),
        units=units,
        store=Store.at(str(tmp_path / "results")),
        resources=ResourcesConfig(evaluators=2, cpus_per_evaluator=0.5, evaluation_timeout_seconds=120),
        # The first round starts both processes; then one is free while the other measures.
        rounds=((words, text_unit(tiny_assets / "texts/stories.jsonl", 32)), (endings,), (text,), (fickle,)),
    )
    (scores,), said = run_driver(order, tmp_path, cluster)
    assert "task endings_local, joining 2 parts" in said
    assert "task fickle_local, joining 2 parts" in said
    assert "task fickle_local: it asks other things each time that it is set up; measuring it in one process" in said
    assert "task words_local, joining" not in said  # what is sampled is one chunk
    assert said.count("perplexity on stories") >= 3
    alone = evaluate(
        tiny_model, (endings, words, text), Store.at(str(tmp_path / "alone")), LoadedModels("float32", "cpu"),
        batch_size=2, on_progress=print,
    )  # fmt: skip
    assert not scores.missing
    assert scores.perplexity == alone.perplexity
    assert [replace(score, results_url=None) for score in scores.tasks[:2]] == [
        replace(score, results_url=None) for score in alone.tasks
    ]
    assert scores.tasks[2].num_items == scores.tasks[0].num_items  # of the fickle one, each once
    for score in scores.tasks:
        assert score.results_url is not None
        assert Path(score.results_url.removeprefix("file://")).is_file()
