"""The model that constraints recommend, and why the others are not."""

from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.errors import BadInputError
from shortened_llm.records import Constraints, EvalScores, Experiment, Objective
from shortened_llm.reporting.merge import merge_experiments
from shortened_llm.reporting.recommendation import Recommendation, recommend
from shortened_llm.reporting.rows import trial_rows
from shortened_llm.reporting.write import write_report
from shortened_llm.search.export import choose_trial
from tests.reporting.experiments import everything, experiment

NO_LIMIT = Constraints(max_bytes=None, max_latency_ratio=None, max_drop=())
SMALL, LARGE = "ppl 40% cpt lr 0.0003 seed 0", "ppl+taylor 20% cpt lr 0.0003 seed 0"


def under(constraints: Constraints, found: Experiment | None = None) -> tuple[Experiment, Recommendation]:
    full = replace(found or experiment(), constraints=constraints)
    recommendation = recommend(full, trial_rows(full))
    assert recommendation is not None
    return full, recommendation


def name(found: Recommendation) -> str | None:
    return found.chosen.trial.spec.name if found.chosen else None


def test_without_constraints_nothing_is_recommended() -> None:
    assert recommend(experiment(), trial_rows(experiment())) is None


def test_quality_alone_leaves_the_smallest() -> None:
    _, found = under(replace(NO_LIMIT, max_drop=(("piqa", 15.0),)))
    assert (name(found), found.others[0].unmet) == (SMALL, ())
    _, found = under(replace(NO_LIMIT, max_drop=(("piqa", 8.0),)))
    assert name(found) == LARGE
    assert found.others[0].unmet == ("piqa 11.8 points below dense, more than 8",)
    _, found = under(replace(NO_LIMIT, max_drop=(("piqa", 1.0), ("boolq", 1.0))))
    assert found.chosen is None
    assert all("boolq was not measured" in other.unmet for other in found.others)


def test_a_metric_that_is_better_when_lower_drops_when_it_rises() -> None:
    full = experiment()

    def turned(scores: EvalScores) -> EvalScores:
        tasks = [replace(one, value=1 - one.value, higher_is_better=False) for one in scores.tasks]
        return replace(scores, tasks=tuple(tasks))

    trials = tuple(replace(trial, after=turned(trial.after)) for trial in full.trials)
    lower = replace(full, trials=trials, dense_report=turned(full.dense_report))
    for found in (full, lower):
        _, recommended = under(replace(NO_LIMIT, max_drop=(("piqa", 8.0),)), found)
        assert recommended.others[0].unmet == ("piqa 11.8 points below dense, more than 8",)


def test_each_experiment_of_several_is_held_against_what_it_measured() -> None:
    constraints = replace(NO_LIMIT, max_drop=(("piqa", 15.0),))
    first, second = (replace(experiment(), name=name, constraints=constraints) for name in "ab")

    def elsewhere(scores: EvalScores) -> EvalScores:
        return replace(scores, tasks=tuple(replace(one, unit=f"{one.unit} 5 shots") for one in scores.tasks))

    trials = tuple(
        replace(
            trial,
            after=elsewhere(trial.after),
            spec=replace(trial.spec, fingerprint=f"{trial.spec.fingerprint}b"),
        )
        for trial in second.trials
    )
    second = replace(second, trials=trials, dense_report=elsewhere(second.dense_report))
    _, found = under(constraints, merge_experiments([first, second]))
    assert name(found) == SMALL


def test_a_limit_of_size_leaves_the_best() -> None:
    full, found = under(replace(NO_LIMIT, max_bytes=10**12))
    assert name(found) == LARGE
    sizes = sorted({row.plan.size.num_bytes for row in trial_rows(full)})
    _, found = under(replace(NO_LIMIT, max_bytes=sizes[0]))
    assert name(found) == SMALL
    assert "GB, more than" in found.others[0].unmet[0]


def test_losses_by_other_metrics_recommend_nothing() -> None:
    full = experiment()
    small = next(row.trial for row in trial_rows(full) if row.trial.spec.name == SMALL)
    by_task = replace(small, spec=replace(small.spec, objective=Objective(metric="piqa")))
    own_tasks = replace(by_task.result, after=replace(by_task.result.after, tasks=by_task.after.tasks))
    trials = tuple(replace(by_task, result=own_tasks) if one is small else one for one in full.trials)
    mixed = replace(full, trials=trials, constraints=replace(NO_LIMIT, max_bytes=10**12))
    assert recommend(mixed, trial_rows(mixed)) is None
    _, found = under(replace(NO_LIMIT, max_drop=(("piqa", 15.0),)), mixed)
    assert name(found) == SMALL


def test_latency_is_the_worst_of_all_shapes() -> None:
    full = everything()
    best = [row for row in trial_rows(full) if row.is_best]
    worst = {
        row.number: 1 / min(point.speed_up for point in row.trial.after.efficiency.points)
        for row in best
        if row.trial.after.efficiency
    }
    assert len(worst) == len(best) > 1
    (fastest, *_) = sorted(worst, key=lambda number: worst[number])
    _, found = under(replace(NO_LIMIT, max_latency_ratio=worst[fastest] + 1e-6), full)
    assert found.chosen is not None
    assert found.chosen.number == fastest
    assert all("dense, more than" in other.unmet[0] for other in found.others)
    _, found = under(replace(NO_LIMIT, max_latency_ratio=0.5))
    assert all(other.unmet == ("its latency was not measured",) for other in found.others)


def test_report_and_export_take_it(tmp_path: Path) -> None:
    full, _ = under(replace(NO_LIMIT, max_drop=(("piqa", 8.0),)))
    write_report(full, tmp_path)
    number = choose_trial(full).number
    for file in ("report.html", "report.md"):
        page = " ".join((tmp_path / file).read_text().replace("\\", "").split())
        assert f"Recommended by search.constraints: #{number} {LARGE}, fewest bytes of" in page
        assert "piqa 11.8 points below dense, more than 8." in page
    impossible, _ = under(replace(NO_LIMIT, max_bytes=1))
    write_report(impossible, tmp_path)
    assert "No model meets search.constraints." in (tmp_path / "report.md").read_text()
    with pytest.raises(BadInputError, match=r"no model meets search\.constraints; give a target"):
        choose_trial(impossible)


def test_experiments_with_other_constraints_recommend_nothing_together() -> None:
    one, _ = under(NO_LIMIT)
    other = replace(experiment(), name="other")
    assert merge_experiments([one, replace(other, constraints=NO_LIMIT)]).constraints == NO_LIMIT
    assert merge_experiments([one, other]).constraints is None
