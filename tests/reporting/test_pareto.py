import random
from dataclasses import replace

import pytest

from shortened_llm.records import EvalScores
from shortened_llm.reporting.pareto import pareto_optimal
from shortened_llm.reporting.view import report_view
from tests.reporting.experiments import experiment, plan, text, texts, trial


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
    (panel,) = view.panels
    assert [point.perplexity for point in panel.optimal] == [40.0, 36.0]
    assert [point.perplexity for point in panel.before] == [1.5]


def test_two_protocols_of_one_text_never_share_a_panel() -> None:
    both = EvalScores(perplexity=(text("wiki", 25.0, "128 tokens"), text("wiki", 12.0, "2048 tokens")))
    view = report_view(replace(experiment(), trials=(), dense_report=both))
    assert [(panel.column.protocol, panel.dense.perplexity) for panel in view.panels if panel.dense] == [
        ("128 tokens", 25.0),
        ("2048 tokens", 12.0),
    ]


def test_two_files_of_one_name_keep_their_own_numbers() -> None:
    both = EvalScores(perplexity=(text("test", 25.0), text("test", 12.0)))
    view = report_view(replace(experiment(), trials=(), dense_report=both))
    assert [(panel.column.title, panel.dense.perplexity) for panel in view.panels if panel.dense] == [
        ("test", 25.0),
        ("test (2)", 12.0),
    ]


def test_without_report_scores_the_selection_scores_are_plotted() -> None:
    view = report_view(
        replace(
            experiment(),
            dense_report=EvalScores(),
            trials=tuple(replace(t, before=EvalScores(), after=EvalScores()) for t in experiment().trials),
        )
    )
    assert [(panel.column.role, panel.column.source) for panel in view.panels] == [
        ("selection", "wiki"),
        ("selection", "c4"),
    ]
    assert {panel.column.role for panel in report_view(experiment()).panels} == {"report"}
