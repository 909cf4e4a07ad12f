"""One evaluator against two, of one thread each, on the demo's models: `python -m tests.benchmarks.evaluation`.

Both score the same models on the same tasks, from a warm start: the one in this process, as `jobs.evaluate` does, the
two on Ray.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.cli import connect_ray
from shortened_llm.config import ModelConfig, ResourcesConfig, TaskConfig
from shortened_llm.evaluation.evaluate import evaluate
from shortened_llm.evaluation.pool import EvaluationPool
from shortened_llm.evaluation.subject import LoadedModels
from shortened_llm.evaluation.units import TaskUnit
from shortened_llm.models.cpu import prepare_cpu
from shortened_llm.models.stage import stage_model
from shortened_llm.records import EvalScores, ModelRef
from shortened_llm.search.cluster.progress import ProgressLog
from shortened_llm.storage.store import Store
from tests.benchmarks.scoring import ASSETS
from tests.conftest import keeping

TASKS = ("piqa_local", "openbookqa_local")
NUM_MODELS = 4


def models(dense: ModelRef) -> list[ModelRef]:
    """The dense model and views that lack 6, 12 and 18 of its blocks."""
    free = range(4, dense.num_blocks - 2)
    lacking = [set(free[:count]) for count in range(0, 6 * NUM_MODELS, 6)]
    return [dense.view(keeping(tuple(b for b in range(dense.num_blocks) if b not in removed))) for removed in lacking]


def score_here(refs: Sequence[ModelRef], units: Sequence[TaskUnit], store: Store) -> tuple[list[EvalScores], float]:
    """Scores by this process, and the seconds they took."""
    prepare_cpu(1)
    loaded = LoadedModels("bfloat16", "cpu")
    evaluate(refs[0], _warm(units), store, loaded, batch_size=16)
    started = time.perf_counter()
    scores = [evaluate(ref, units, store, loaded, batch_size=16) for ref in refs]
    return scores, time.perf_counter() - started


def score_on_ray(
    refs: Sequence[ModelRef], units: Sequence[TaskUnit], store: Store, log: ProgressLog
) -> tuple[list[EvalScores], float]:
    """Scores by two evaluators that have been started, and the seconds they took."""
    resources = ResourcesConfig(evaluators=2, cpus_per_evaluator=1)
    pool = EvaluationPool.start(
        "benchmark", store, resources, dtype="bfloat16", batch_size=16, may_idle=True
    )  # fmt: skip
    for submitted in [pool.submit(ref, _warm(units), log.about("warm-up")) for ref in refs[:2]]:
        pool.result(submitted)
    started = time.perf_counter()
    scores = [pool.result(one) for one in [pool.submit(ref, units, log.about("two")) for ref in refs]]
    return scores, time.perf_counter() - started


def _warm(units: Sequence[TaskUnit]) -> list[TaskUnit]:
    """Almost the same work: what a process takes once, lm-eval's import and pages for its heap, is no share of it."""
    return [replace(unit, limit=unit.limit - 1) for unit in units if unit.limit is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument("--limit", type=int, default=50, help="items of each task")
    flags = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    units = [
        TaskUnit(config=TaskConfig(task=task), directory=str(ASSETS / "tasks"), limit=flags.limit) for task in TASKS
    ]
    connect_ray()
    with tempfile.TemporaryDirectory() as temporary, ProgressLog("benchmark") as log:
        dense = stage_model(ModelConfig(path=str(ASSETS / "smollm2-135m-instruct")), Store.at(temporary))
        refs = models(dense)
        two, seconds_of_two = score_on_ray(refs, units, Store.at(f"{temporary}/two"), log)
        one, seconds_of_one = score_here(refs, units, Store.at(f"{temporary}/one"))
    equal = [[task.item_values for task in scores.tasks] for scores in one] == [
        [task.item_values for task in scores.tasks] for scores in two
    ]
    ratio = seconds_of_one / seconds_of_two
    print(f"{len(refs)} models, {len(units)} tasks of {flags.limit} items, {os.cpu_count()} cores")
    print(f"one evaluator   {seconds_of_one:7.1f} s")
    print(f"two evaluators  {seconds_of_two:7.1f} s   {ratio:.2f}x, {'equal' if equal else 'DIFFERENT'} results")
    if flags.json:
        flags.json.write_text(json.dumps({"one": seconds_of_one, "two": seconds_of_two, "ratio": ratio}))


if __name__ == "__main__":
    main()
