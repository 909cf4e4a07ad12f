"""By which score a search chooses."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.config import parse_config
from shortened_llm.records import Objective, TaskScore, TrialResult
from shortened_llm.reporting.paired import objective_difference
from shortened_llm.reporting.rows import best_of_each_target, trial_rows
from shortened_llm.search.stored.experiment import read_experiment
from shortened_llm.search.strategies.rungs import Rung, promoted
from shortened_llm.search.trial import read_result
from shortened_llm.storage.store import Store
from tests.evaluation.local_tasks import write_tasks
from tests.search.pipeline import Pipeline, small

OWN = "tests.search.own_measures:mean_magnitude"
TASK = "endings_local"


@pytest.fixture
def pipeline(tiny_values: dict, tmp_path: Path, local_store: Store) -> Pipeline:
    """Three candidates of one target, each measured by a text, a task and a measure of one's own."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    write_tasks(directory)
    values = small(tiny_values)
    values["pruning"]["criteria"] = ["ppl"]
    values["retraining"]["cpt"]["learning_rate"] = [1e-5, 3e-3]
    values["evaluation"]["task_directory"] = str(directory)
    values["evaluation"]["selection"]["perplexity"][0]["max_tokens"] = 4096  # several documents
    values["evaluation"]["selection"] |= {"tasks": [TASK], "metrics": [OWN]}
    values["search"]["metric"] = f"{TASK}/bits_per_byte"
    return Pipeline(parse_config(values), local_store)


@pytest.mark.usefixtures("process_group")
def test_candidates_are_compared_by_the_metric_of_the_search(pipeline: Pipeline) -> None:
    results: dict[str, TrialResult] = {}
    for spec in pipeline.specs:
        pipeline.trial(spec)
        result = read_result(pipeline.store, spec)
        assert result is not None
        results[spec.fingerprint] = result
    assert len(results) == 3
    values = {
        Objective(): {name: result.after.mean_nll for name, result in results.items()},
        Objective(metric=TASK): {name: -on_task(result).value for name, result in results.items()},
        Objective(metric=f"{TASK}/bits_per_byte"): {name: bits(result) for name, result in results.items()},
        Objective(metric=OWN): {name: result.after.metrics[0].value for name, result in results.items()},
        Objective(metric=OWN, higher_is_better=True): {
            name: -result.after.metrics[0].value for name, result in results.items()
        },
    }
    assert len({tuple(sorted(losses, key=lambda name: losses[name])) for losses in values.values()}) > 1
    for objective, losses in values.items():
        check(pipeline, objective, losses, results)

    # The plan of the search knows its metric, and so does the report.
    experiment = read_experiment(pipeline.store.experiment_url("test"))
    assert {row.trial.spec.objective.title for row in trial_rows(experiment)} == {f"bits per byte of {TASK}"}


def check(
    pipeline: Pipeline, objective: Objective, losses: Mapping[str, float], results: Mapping[str, TrialResult]
) -> None:
    specs = tuple(replace(spec, objective=objective) for spec in pipeline.specs)
    best = min(losses, key=lambda name: (losses[name], name))
    first, *_ = promoted(Rung(entrants=specs, enough=3, is_closed=True), results, set(results))
    assert first.fingerprint == best
    experiment = read_experiment(pipeline.store.experiment_url("test"))
    trials = [
        replace(trial, spec=replace(trial.spec, objective=objective), result=results[trial.spec.fingerprint])
        for trial in experiment.trials
    ]
    (chosen,) = best_of_each_target(trials).values()
    assert chosen.spec.fingerprint == best
    for one in results:
        for other in results:
            difference = objective_difference(objective, results[one].after, results[other].after)
            assert difference is not None
            assert difference.mean == pytest.approx(losses[one] - losses[other], abs=1e-6)
            assert (difference.standard_error is None) == (objective.metric == OWN)


def on_task(result: TrialResult) -> TaskScore:
    (score,) = result.after.tasks
    return score


def bits(result: TrialResult) -> float:
    found = on_task(result).bits_per_byte
    assert found is not None
    return found
