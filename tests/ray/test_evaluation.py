"""Evaluators on a real cluster: equal numbers for any number of them, also when one dies, hangs or cannot do it."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.config import PerplexitySource, ResourcesConfig, TaskConfig
from shortened_llm.data.sources import Documents
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.units import MetricUnit, TaskUnit, TextUnit, Unit
from shortened_llm.records import EvalScores, ModelRef, from_json
from shortened_llm.storage.store import Store
from tests.conftest import keeping
from tests.evaluation.local_tasks import write_tasks
from tests.ray.conftest import ROOT, Cluster
from tests.ray.evaluation_driver import Order

OWN_MEASURES = """
import os, signal, time
from pathlib import Path

MARKS = Path(__file__).parent


def first_time(name):
    try:
        (MARKS / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def dies_once(model, tokenizer):
    if first_time("died"):
        os.kill(os.getpid(), signal.SIGKILL)
    return float(model.num_parameters())


def hangs_once(model, tokenizer):
    if first_time("hung"):
        time.sleep(1000)
    return 2.0


def always_fails(model, tokenizer):
    raise RuntimeError("this measure is broken")


def says_no_number(model, tokenizer):
    return "good"
"""


def text_unit(text: Path, length: int, segments: int = 20) -> TextUnit:
    source = PerplexitySource(path=str(text), segment_length=length, bos="none", max_tokens=segments * length)
    documents = Documents(
        source=source, purpose="report", shared_with=(), files=(str(text),), commit=None,
        field_path="evaluation.report.perplexity.0",
    )  # fmt: skip
    return TextUnit(documents=documents, source=source)


def run_driver(order: Order, directory: Path, cluster: Cluster) -> tuple[list[EvalScores], str]:
    (directory / "order.pickle").write_bytes(pickle.dumps(order))
    environment = {**cluster.environment, "RAY_ADDRESS": "127.0.0.1:6499", "PYTHONPATH": f"{ROOT}:{directory}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.evaluation_driver", str(directory / "order.pickle")],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("scores ") for line in done.stdout.splitlines() if line.startswith("scores ")]
    return [from_json(EvalScores, line) for line in lines], done.stderr


@pytest.mark.timeout(300)
def test_what_a_lost_or_hung_evaluator_did_is_done_by_another(
    tiny_model: ModelRef, tiny_assets: Path, tmp_path: Path, cluster: Cluster
) -> None:
    stories = tiny_assets / "texts/stories.jsonl"
    (tmp_path / "own_measures.py").write_text(OWN_MEASURES)
    paths = [f"own_measures:{name}" for name in ("dies_once", "hangs_once", "always_fails", "says_no_number")]
    texts = (text_unit(stories, 16), text_unit(stories, 32))
    order = Order(
        models=(tiny_model, tiny_model.view(keeping((0, 1, 2, 7)))),
        units=(*texts, *(MetricUnit(path=path) for path in paths)),
        store=Store.at(str(tmp_path / "results")),
        resources=ResourcesConfig(evaluators=2, cpus_per_evaluator=0.5, evaluation_timeout_seconds=15),
    )
    sys.path.insert(0, str(tmp_path))
    try:
        (dense, pruned), said = run_driver(order, tmp_path, cluster)
    finally:
        sys.path.remove(str(tmp_path))
    assert [metric.name for metric in dense.metrics] == paths[:2]
    assert {metric.value for metric in (*dense.metrics, *pruned.metrics)} > {2.0}
    assert dense.metrics[0].value > pruned.metrics[0].value
    for scores in (dense, pruned):
        failed, wrong = scores.missing
        assert "always_fails" in failed.name
        assert "this measure is broken" in failed.cause
        assert wrong.is_bad_input
        assert wrong.cause.startswith("evaluation: 'own_measures:says_no_number' returned 'good'")
    assert "no sign of life within 15 s" in said
    # One process scores the texts alone here: not a digit differs.
    for ref, scores in zip(order.models, (dense, pruned), strict=True):
        alone = evaluate(
            ref, texts, Store.at(str(tmp_path / "alone")), LoadedModels("float32", "cpu"), batch_size=2,
        )  # fmt: skip
        assert scores.perplexity == alone.perplexity
    done = len(list((tmp_path / "results" / "evaluations").iterdir()))
    assert done == 2 * (2 + 2)  # what is missing is not stored, and will be tried again


@pytest.mark.timeout(600)
def test_numbers_are_equal_for_any_number_of_evaluators(
    tiny_model: ModelRef, tiny_assets: Path, tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    units: tuple[Unit, ...] = (
        text_unit(tiny_assets / "texts/stories.jsonl", 64, segments=1100),
        *(TaskUnit(config=TaskConfig(task=f"{name}_local"), directory=str(tmp_path / "tasks"), limit=None)
          for name in ("endings", "words")),
    )  # fmt: skip
    found: list[EvalScores] = []
    for evaluators in (1, 2):
        order = Order(
            models=(tiny_model,),
            units=units,
            store=Store.at(str(tmp_path / f"results {evaluators}")),
            resources=ResourcesConfig(evaluators=evaluators, cpus_per_evaluator=0.5),
        )
        (scores,), said = run_driver(order, tmp_path, cluster)
        assert not scores.missing
        found.append(scores)
        assert all(f"part {part} of 3" in said for part in (1, 2, 3))
        assert said.count("task endings_local") == 1  # a task is measured by one evaluator
        for task in scores.tasks:
            assert task.results_url is not None
            assert Path(task.results_url.removeprefix("file://")).is_file()
    loaded, here = LoadedModels("float32", "cpu"), Store.at(str(tmp_path / "alone"))
    found.append(evaluate(tiny_model, units, here, loaded, batch_size=2))
    first, *others = (
        replace(scores, tasks=tuple(replace(task, results_url=None) for task in scores.tasks)) for scores in found
    )
    assert others == [first] * 2
