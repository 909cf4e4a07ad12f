"""Several experiments in one report: what is the same appears once, what differs never shares a column."""

from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.errors import BadInputError
from shortened_llm.records import AgreementScore, EvalScores, Experiment, MissingScore, Objective
from shortened_llm.reporting.merge import merge_experiments
from shortened_llm.reporting.view import report_view
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import (
    BOS_FIRST,
    HELD_OUT,
    SIZE,
    compared,
    efficiency,
    experiment,
    own_metric,
    plan,
    task_score,
    text,
    texts,
    trial,
    unit_scores,
)
from tests.reporting.page import Page

FIRST = replace(experiment(), name="one")
CUT = plan((9, 10), ("ppl", 0.07))


def second(**changes: object) -> Experiment:
    """Shares its first two trials with the first experiment, and has one of its own."""
    own = trial("g1", CUT, after=texts(HELD_OUT, wiki=28.0, c4=40.0), report_after=texts(wikitext2=30.0, austen=50.0))
    return replace(FIRST, name="two", trials=(*FIRST.trials[:2], own), **changes)  # type: ignore[arg-type]


def test_a_trial_of_both_appears_once_and_says_so() -> None:
    merged = merge_experiments([FIRST, second()])
    assert merged.name == "one + two"
    found = {one.spec.fingerprint: one.experiments for one in merged.trials}
    assert found == {
        "f1": ("one", "two"), "f2": ("one", "two"), "f3": ("one",), "f4": ("one",), "f5": ("one",), "f6": ("one",),
        "g1": ("two",),
    }  # fmt: skip
    assert merged.unit_scores == FIRST.unit_scores
    assert merged.dense_report == FIRST.dense_report


def test_one_result_has_a_row_for_each_metric_and_as_a_control() -> None:
    first, *others = FIRST.trials
    control = replace(first, spec=replace(first.spec, control="dense"))
    by_task = replace(first, spec=replace(first.spec, objective=Objective(metric="piqa")))
    one, two = (
        replace(FIRST, name=name, trials=(first, other, *others))
        for name, other in (("one", control), ("two", by_task))
    )
    found = [(one.spec.control, one.spec.objective.metric) for one in merge_experiments([one, two]).trials]
    assert found[0] == (None, "perplexity")
    assert sorted(found[1:], key=str).count(("dense", "perplexity")) == found.count((None, "piqa")) == 1
    assert len(found) == len(FIRST.trials) + 2


def test_a_row_of_equal_seconds_stands_beside_that_of_equal_tokens() -> None:
    first, *others = FIRST.trials
    alike = replace(first, spec=replace(first.spec, equal_seconds=True))
    merged = merge_experiments([replace(FIRST, trials=(first, alike, *others)), second()])
    assert [one.spec.equal_seconds for one in merged.trials if one.spec.fingerprint == "f1"] == [False, True]


def test_a_result_that_one_of_them_has_is_shown() -> None:
    unfinished = replace(
        FIRST,
        name="two",
        trials=tuple(replace(one, result=None, before=EvalScores(), after=EvalScores()) for one in FIRST.trials),
    )
    merged = merge_experiments([unfinished, FIRST])
    assert [one.result is not None for one in merged.trials] == [one.result is not None for one in FIRST.trials]
    assert merged.trials[0].after == FIRST.trials[0].after


def test_a_score_that_one_of_them_has_is_not_missing() -> None:
    wiki, piqa = text("wiki", 20.0), task_score("piqa", "acc", 0.6, seed=1)
    agreement, own = agreeing("x", "a", 1.0).trials[0].after.agreement, own_metric(0.4)
    found = EvalScores(
        perplexity=(wiki,), tasks=(piqa,), agreement=agreement, metrics=own, efficiency=efficiency(28)
    )  # fmt: skip
    units = [score.unit for score in (wiki, piqa, *agreement, *own)] + [efficiency(28).unit]
    lost = [MissingScore(unit=unit, name="any name", cause="lost") for unit in (*units, "another text called wiki")]
    one, two = (
        replace(FIRST, name=name, trials=(trial("f", CUT, after=texts(wiki=20.0), report_after=scores),))
        for name, scores in (("one", EvalScores(missing=tuple(lost))), ("two", found))
    )
    for order in ([one, two], [two, one]):
        (merged,) = merge_experiments(order).trials
        assert merged.after == replace(found, missing=(lost[-1],))


def test_other_protocols_stay_apart_and_so_do_other_texts_of_one_name() -> None:
    scores = EvalScores(
        perplexity=(text("wikitext2", 12.0, "segments of 2048 tokens"), text("austen", 99.0, unit="another austen"))
    )
    own = trial("g1", CUT, after=texts(HELD_OUT, wiki=28.0), report_after=scores)
    merged = merge_experiments([FIRST, replace(second(dense_report=scores), trials=(own,))])
    assert [c.title for c in report_view(merged).columns if c.role == "report" and c.kind == "text"] == [
        f"wikitext2, {BOS_FIRST}", "austen", "wikitext2, segments of 2048 tokens", "austen (two)",
    ]  # fmt: skip
    (found,) = (one for one in merged.trials if one.spec.fingerprint == "g1")
    assert found.after == scores


def test_means_over_one_text_under_two_protocols_are_named_by_these() -> None:
    short, long = (
        replace(FIRST, name=name, trials=(trial(name, CUT, after=texts(name, wiki=20.0)),),
                dense_selection=texts(name, wiki=19.0))
        for name in ("@128", "@2048")
    )  # fmt: skip
    view = report_view(merge_experiments([short, long]))
    assert sorted(mean.name for mean in view.selection_means) == ["wiki, @128", "wiki, @2048"]


def agreeing(name: str, unit: str, kl: float) -> Experiment:
    """Whose own trial is measured by its agreement on a text called `test`."""
    score = AgreementScore(unit=unit, source="test", protocol=BOS_FIRST, kl=kl, top1=0.5, num_predictions=9)
    own = trial(name, CUT, after=texts(HELD_OUT, wiki=28.0), report_after=EvalScores(agreement=(score,)))
    return replace(FIRST, name=name, trials=(own,))


def test_agreement_on_another_text_of_one_name_has_a_column_of_its_own() -> None:
    for unit, titles in (("a", ["test kl"]), ("b", ["test kl", "test kl (two)"])):
        view = report_view(merge_experiments([agreeing("one", "a", 1.0), agreeing("two", unit, 2.0)]))
        assert [column.title for column in view.columns if column.metric == "kl"] == titles


def test_a_trial_of_both_keeps_the_agreement_on_both_texts() -> None:
    first, other = agreeing("one", "a", 1.0), agreeing("two", "b", 2.0)
    shared = replace(other.trials[0], spec=first.trials[0].spec)
    (both,) = merge_experiments([first, replace(other, trials=(shared,))]).trials
    assert [(score.unit, score.kl) for score in both.after.agreement] == [("a", 1.0), ("b", 2.0)]


def test_two_texts_of_one_name_stay_two() -> None:
    other = agreeing("two", "a", 1.0)
    (own,) = other.trials
    both = replace(
        own, after=EvalScores(agreement=(*own.after.agreement, *agreeing("x", "b", 2.0).trials[0].after.agreement))
    )
    (merged,) = merge_experiments(
        [replace(FIRST, trials=(replace(own, after=EvalScores()),)), replace(other, trials=(both,))]
    ).trials
    assert [score.kl for score in merged.after.agreement] == [1.0, 2.0]


@pytest.mark.parametrize(("unit", "titles"), [("a", ["test"]), ("b", ["test", "test (two)"])])
def test_texts_are_the_same_by_their_unit_and_never_by_their_scores(unit: str, titles: list[str]) -> None:
    def measured(name: str, unit: str) -> Experiment:
        scores = EvalScores(perplexity=(text("test", 25.0, unit=unit),))
        own = trial(name, CUT, after=texts(HELD_OUT, wiki=28.0), report_after=scores)
        return replace(FIRST, name=name, trials=(own,), dense_report=scores)

    view = report_view(merge_experiments([measured("one", "a"), measured("two", unit)]))
    columns = [column for column in view.columns if column.role == "report"]
    assert [column.title for column in columns] == titles
    assert all(column in view.dense for column in columns)


def test_texts_of_one_name_in_one_experiment_are_numbered() -> None:
    """The name of the experiment would not tell them apart."""
    both = EvalScores(perplexity=tuple(text("test", value, unit=unit) for unit, value in (("b", 12.0), ("c", 7.0))))
    other = replace(FIRST, name="two", trials=(trial("g", CUT, after=texts(wiki=28.0), report_after=both),))
    first = replace(FIRST, dense_report=EvalScores(perplexity=(text("test", 25.0, unit="a"),)), trials=())
    view = report_view(merge_experiments([first, replace(other, dense_report=EvalScores())]))
    assert [c.title for c in view.columns if c.role == "report"] == ["test", "test (2)", "test (3)"]


def test_means_over_other_selection_texts_have_columns_and_bests_of_their_own() -> None:
    own = trial("g1", plan((4, 5, 7, 9, 11, 13), ("ppl", 0.2)), after=texts(HELD_OUT, austen=20.0))
    other = replace(FIRST, name="two", trials=(own,), dense_selection=texts(HELD_OUT, austen=19.0))
    view = report_view(merge_experiments([FIRST, other]))
    assert [mean.name for mean in view.selection_means] == ["austen", "wiki, c4"]
    assert {row.trial.spec.fingerprint for row in view.rows if row.is_best} == {"f2", "f4", "g1"}
    assert [size.lead for size in view.sizes] == ["24 of 30 blocks", "24 of 30 blocks", "18 of 30 blocks"]


def test_a_criterion_with_other_scores_gets_its_experiments_name_in_plans_too() -> None:
    other = second(unit_scores=(replace(unit_scores("ppl"), fingerprint="other text"),))
    merged = merge_experiments([FIRST, other])
    assert [scores.criterion for scores in merged.unit_scores] == ["ppl", "taylor", "ppl (two)"]
    (own,) = (one for one in merged.trials if one.spec.fingerprint == "g1")
    assert [label.criterion for label in own.spec.plan.labels] == ["ppl (two)"]


def test_methods_are_compared_within_an_experiment_alone() -> None:
    """Another experiment may train on other data."""
    full = compared()
    other = replace(
        full, name="two",
        trials=tuple(replace(t, spec=replace(t.spec, fingerprint=f"x{t.spec.fingerprint}")) for t in full.trials),
    )  # fmt: skip
    view = report_view(merge_experiments([full, other]))
    assert [one.experiment for one in view.comparisons] == [full.name, "two"]
    (alone,) = report_view(full).comparisons
    expected = alone.plans[0].tables[0]
    for one in view.comparisons:
        found = one.plans[0].tables[0]
        assert [entrant.seeds for entrant in found.entrants] == [entrant.seeds for entrant in expected.entrants]
        for column in one.columns:
            assert [entrant.difference(found.reference, column) for entrant in found.entrants] == [
                entrant.difference(expected.reference, column) for entrant in expected.entrants
            ]


def test_the_page_says_of_each_row_which_experiment_has_it(tmp_path: Path) -> None:
    page = Page(write_report(merge_experiments([FIRST, second()]), tmp_path).read_text(encoding="utf-8"))
    named = [cells[0].strip() for name, cells in page.rows.items() if name.startswith("trial-")]
    assert sum(name.endswith("one, two") for name in named) == 2
    assert sum(name.endswith("two") and not name.endswith("one, two") for name in named) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dense_size": replace(SIZE.without(()), blocks=32)}, "blocks 30 and 32"),
        ({"dense_size": replace(SIZE.without(()), parameters=7)}, "parameters 134515008 and 7"),
        ({"dense_fingerprint": "0f"}, "files 6f1d2a90c3b4e587 and 0f"),
    ],
)
def test_other_dense_models_are_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(BadInputError, match=named) as refused:
        merge_experiments([FIRST, replace(FIRST, name="two", **changes)])
    assert "'one' and 'two'" in str(refused.value)


def test_the_name_of_the_dense_model_does_not_count() -> None:
    same = replace(FIRST, name="two", model="/data/the/same/files")
    assert len(merge_experiments([FIRST, same]).trials) == len(FIRST.trials)
