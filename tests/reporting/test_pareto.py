import random
from dataclasses import replace

import pytest

from shortened_llm.records import EvalScores
from shortened_llm.reporting.pareto import ParetoPanel, pareto_optimal
from shortened_llm.reporting.view import ReportView, report_view
from tests.reporting.experiments import everything, experiment, plan, text, texts, trial


def panels(view: ReportView) -> list[ParetoPanel]:
    return [panel for group in view.panel_groups for panel in group.panels]


@pytest.mark.parametrize(
    ("points", "optimal"),
    [
        pytest.param([], (), id="none"),
        pytest.param([(1.0, 1.0)], (0,), id="one"),
        pytest.param([(3.0, 10.0), (1.0, 30.0), (2.0, 20.0)], (1, 2, 0), id="all, smallest first"),
        pytest.param([(3.0, 10.0), (2.0, 9.0), (1.0, 30.0)], (2, 1), id="smaller and better"),
        pytest.param([(1.0, 30.0), (1.0, 20.0), (1.0, 25.0)], (1,), id="equal size"),
        pytest.param([(2.0, 20.0), (1.0, 20.0)], (1,), id="equal perplexity"),
        pytest.param([(1.0, 20.0), (2.0, 10.0), (1.0, 20.0)], (0, 2, 1), id="equal points stand together"),
    ],
)
def test_known_points(points: list[tuple[float, float]], optimal: tuple[int, ...]) -> None:
    assert pareto_optimal(points) == optimal


def test_agrees_with_the_definition_of_dominance() -> None:
    draw = random.Random(0)
    for _ in range(200):
        points = [(float(draw.randint(0, 5)), float(draw.randint(0, 5))) for _ in range(12)]
        undominated = {
            i for i, (x, y) in enumerate(points) if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        }
        assert set(pareto_optimal(points)) == undominated


def test_the_line_joins_dense_and_retrained_models_only() -> None:
    # Before retraining, the small model would be the best of all.
    lucky = trial(
        "x",
        plan((9, 10), ("ppl", 0.07)),
        after=texts(wiki=30.0),
        report_before=texts(austen=1.5),
        report_after=texts(austen=40.0),
    )
    view = report_view(replace(experiment(), trials=(lucky,), dense_report=texts(austen=36.0)))
    panel = panels(view)[0]
    assert [[point.y for point in line] for line in panel.optimal] == [[40.0, 36.0]]
    assert [point.y for point in panel.before] == [1.5]


def test_two_protocols_of_one_text_never_share_a_panel() -> None:
    both = EvalScores(perplexity=(text("wiki", 25.0, "128 tokens"), text("wiki", 12.0, "2048 tokens")))
    view = report_view(replace(experiment(), trials=(), dense_report=both))
    assert [(panel.y.protocol, panel.dense.y) for panel in panels(view) if panel.dense] == [
        ("128 tokens", 25.0),
        ("2048 tokens", 12.0),
    ]


def test_two_files_of_one_name_keep_their_own_numbers() -> None:
    both = EvalScores(perplexity=(text("test", 25.0, unit="a"), text("test", 12.0, unit="b")))
    view = report_view(replace(experiment(), trials=(), dense_report=both))
    assert [(panel.y.title, panel.dense.y) for panel in panels(view) if panel.dense] == [
        ("perplexity on test (report)", 25.0),
        ("perplexity on test (2) (report)", 12.0),
    ]


def test_without_report_scores_the_selection_scores_are_plotted() -> None:
    view = report_view(
        replace(
            experiment(),
            dense_report=EvalScores(),
            trials=tuple(replace(t, before=EvalScores(), after=EvalScores()) for t in experiment().trials),
        )
    )
    by_size = [panel.y.title for panel in panels(view) if panel.x.title == "parameters"]
    assert by_size == ["perplexity on wiki (selection)", "perplexity on c4 (selection)"]
    assert not any("selection" in panel.y.title for panel in panels(report_view(experiment())))


def test_every_measured_cost_has_a_panel_with_the_dense_point_and_no_other_has() -> None:
    view = report_view(everything())
    assert [(group.title, len(group.panels)) for group in view.panel_groups] == [
        ("Size", 3), ("Latency", 2), ("Peak memory", 2), ("Training cost", 2),
    ]  # fmt: skip
    assert all(panel.dense for panel in panels(view))
    assert {panel.y.title for panel in panels(view)} == {
        "perplexity on wiki (report)", "perplexity on austen (report)", "mean of 7 tasks",
    }  # fmt: skip
    latency = next(panel for panel in panels(view) if panel.x.title.startswith("latency"))
    assert latency.x.title == "latency at batch 1, 128 tokens out"
    assert latency.dense
    assert latency.dense.x == pytest.approx(
        sum(line.row is None and line.point.latency for line in view.efficiency[0].shapes[0])
    )
    measured = report_view(experiment())
    assert [group.title for group in measured.panel_groups] == ["Size", "Training cost"]


def test_where_more_is_better_the_line_takes_the_upper_points() -> None:
    view = report_view(everything())
    panel = next(p for p in panels(view) if p.y.title == "mean of 7 tasks" and p.x.title == "parameters")
    assert panel.better == "upper left"
    (line,) = panel.optimal
    assert len(line) == 3
    assert line[-1] == panel.dense
    assert [point.y for point in line] == sorted(point.y for point in line)


def test_training_cost_is_compared_within_a_size() -> None:
    """The dense model was never trained here: it would beat every other at no cost."""
    panel = panels(report_view(everything()))[-2]
    assert panel.x.title == "accelerator hours"
    assert panel.dense
    assert panel.dense.x == 0.0
    assert [len({point.row.plan.transforms for point in line if point.row}) for line in panel.optimal] == [1, 1]
    assert not any(point is panel.dense for line in panel.optimal for point in line)


def test_a_single_task_is_plotted_by_its_name() -> None:
    assert "piqa acc" in [panel.y.title for panel in panels(report_view(experiment()))]
