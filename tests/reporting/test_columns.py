"""What shares a column: one text or task under one protocol, whatever else a model was measured on."""

from dataclasses import replace

import pytest

from shortened_llm.records import AgreementScore, EvalScores, Experiment, MissingScore, ReportedTrial
from shortened_llm.reporting.columns import protocol_notes
from shortened_llm.reporting.tasks import set_titles
from shortened_llm.reporting.view import ReportView, report_view
from tests.reporting.experiments import BOS_FIRST, experiment, plan, task_score, text, texts, trial

CUT = plan((9, 10), ("ppl", 0.07))
A = text("test", 25.0, unit="a")
B = text("test", 12.0, unit="b")


def measured(*scores: object) -> EvalScores:
    return EvalScores(perplexity=scores)  # type: ignore[arg-type]


def searched(*trials: ReportedTrial, dense: EvalScores) -> Experiment:
    return replace(experiment(), trials=trials, dense_selection=dense, dense_report=dense)


def table(view: ReportView, number: int, role: str = "report") -> dict[str, float]:
    """Title of a column -> what the trial of this number has there."""
    after = next(row for row in view.rows if row.number == number).after
    return {column.title: after[column].value for column in view.columns if column.role == role and column in after}


@pytest.mark.parametrize("role", ["selection", "report"])
def test_a_text_keeps_its_column_where_another_of_its_name_is_missing(role: str) -> None:
    second = replace(
        measured(replace(B, perplexity=13.0)), missing=(MissingScore(unit="a", name="test", cause="lost"),)
    )
    lacking = trial("a", CUT, after=second, report_after=second)
    view = report_view(searched(lacking, dense=measured(A, B)))
    assert table(view, 1, role) == {"test (2)": 13.0}
    (column,) = (c for c in view.rows[0].after if c.role == role)
    assert view.dense[column].value == 12.0


def test_the_columns_do_not_depend_on_the_order_of_a_models_scores() -> None:
    turned = trial("a", CUT, after=measured(B, A), report_after=measured(B, A))
    assert table(report_view(searched(turned, dense=measured(A, B))), 1) == {"test": 25.0, "test (2)": 12.0}


def test_the_selection_mean_of_the_dense_model_is_over_both_texts_of_a_name() -> None:
    both = measured(A, B)
    view = report_view(searched(trial("a", CUT, after=both), dense=both))
    (mean,) = view.selection_means
    assert mean.dense == pytest.approx((A.mean_nll + B.mean_nll) / 2)


def test_agreement_is_told_apart_by_its_text_too() -> None:
    def agreement(unit: str, kl: float) -> AgreementScore:
        return AgreementScore(unit=unit, source="test", protocol=BOS_FIRST, kl=kl, top1=0.5, num_predictions=9)

    whole = trial(
        "a", CUT, after=measured(A), report_after=EvalScores(agreement=(agreement("a", 1.0), agreement("b", 2.0)))
    )
    lacking = trial("b", CUT, after=measured(B), report_after=EvalScores(agreement=(agreement("b", 3.0),)))
    view = report_view(searched(whole, lacking, dense=EvalScores()))
    found = sorted((table(view, number) for number in (1, 2)), key=len)
    assert found == [
        {"test kl (2)": 3.0, "test top1 (2)": 0.5},
        {"test kl": 1.0, "test kl (2)": 2.0, "test top1": 0.5, "test top1 (2)": 0.5},
    ]


def titles(full: Experiment) -> list[str]:
    return [column.title for column in report_view(full).columns if column.role == "report"]


SHORT, LONG = "@128 bos-first, report part", "@2048 bos-first, report part"


def test_titles_carry_of_the_protocols_what_differs() -> None:
    scores = measured(text("wiki", 25.0, SHORT), text("wiki", 12.0, LONG), text("austen", 30.0, SHORT))
    full = searched(trial("a", CUT, after=scores, report_after=scores), dense=scores)
    assert titles(full) == ["wiki, @128 bos-first", "wiki, @2048 bos-first", "austen"]
    (size,) = report_view(full).sizes
    assert [fact.about for fact in size.facts][:3] == [
        "perplexity, wiki, @128 bos-first", "perplexity, wiki, @2048 bos-first", "perplexity, austen",
    ]  # fmt: skip


def test_means_of_one_number_of_tasks_carry_their_protocol() -> None:
    tasks = tuple(
        task_score(task, "acc", 0.7, seed=1, protocol=f"lm-eval 0.4.13, {shots} shots")
        for shots in (0, 5) for task in ("piqa", "boolq")
    )  # fmt: skip
    rows = [replace(trial(name, CUT, after=texts(wiki=30.0)), after=EvalScores(tasks=own))
            for name, own in (("a", tasks[:2]), ("b", tasks[2:]))]  # fmt: skip
    view = report_view(replace(experiment(), trials=tuple(rows), dense_report=EvalScores(tasks=tasks)))
    assert view.tasks is not None
    assert set_titles(view.tasks.sets) == ("mean of 2 tasks, 0 shots", "mean of 2 tasks, 5 shots")
    assert [column.title for column in view.tasks.tasks] == [
        "piqa acc, 0 shots", "boolq acc, 0 shots", "piqa acc, 5 shots", "boolq acc, 5 shots",
    ]  # fmt: skip


def test_the_notes_below_a_table_name_each_protocol_once() -> None:
    scores = measured(text("wiki", 25.0, SHORT), text("austen", 30.0, SHORT), text("c4", 12.0, LONG))
    view = report_view(searched(dense=scores))
    notes = protocol_notes(column for column in view.columns if column.role == "report")
    assert notes == {SHORT: "wiki, austen", LONG: "c4"}
