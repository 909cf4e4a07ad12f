from dataclasses import replace
from itertools import pairwise

import pytest

from shortened_llm.reporting import formats
from shortened_llm.reporting.headline import size_summaries
from shortened_llm.reporting.plots import spread
from shortened_llm.reporting.rows import best_of_each_size, trial_rows
from shortened_llm.reporting.view import report_view
from tests.reporting.experiments import experiment, plan, texts, trial, without_results

CUT = plan((9, 10), ("ppl", 0.07))


def test_best_is_chosen_by_selection_scores_and_never_by_report_scores() -> None:
    selected = trial("a", CUT, after=texts(wiki=30.0), report_after=texts(austen=90.0))
    better_in_report = trial("b", CUT, after=texts(wiki=31.0), report_after=texts(austen=40.0))
    assert best_of_each_size([better_in_report, selected]) == {28: selected}


def test_best_takes_the_mean_of_log_perplexities_over_texts() -> None:
    # The mean perplexity would prefer the second: 60 < 65, but sqrt(10 * 120) < sqrt(60 * 60).
    first = trial("a", CUT, after=texts(wiki=10.0, c4=120.0))
    second = trial("b", CUT, after=texts(wiki=60.0, c4=60.0))
    assert best_of_each_size([second, first]) == {28: first}


def test_one_best_for_each_number_of_blocks_and_none_where_nothing_finished() -> None:
    rows = trial_rows(experiment())
    assert {(len(row.plan.kept_blocks), row.trial.spec.fingerprint) for row in rows if row.best_of_size} == {
        (24, "f2"),
        (18, "f4"),
    }
    assert best_of_each_size(without_results().trials) == {}


def test_a_tie_has_one_winner_whatever_the_order() -> None:
    first, second = trial("a", CUT, 3e-4, after=texts(wiki=30.0)), trial("b", CUT, 1e-4, after=texts(wiki=30.0))
    assert best_of_each_size([first, second]) == best_of_each_size([second, first]) == {28: first}


def test_rows_do_not_depend_on_the_order_of_the_records() -> None:
    full = experiment()
    assert trial_rows(full) == trial_rows(replace(full, trials=tuple(reversed(full.trials))))
    assert [row.trial.spec.fingerprint for row in trial_rows(full)] == ["f2", "f1", "f4", "f3", "f6", "f5"]


def test_numbers_of_an_unfinished_trial_are_missing() -> None:
    unfinished = next(row for row in trial_rows(experiment()) if row.status == "not finished")
    assert unfinished.tokens is unfinished.training_seconds is unfinished.tokens_per_second is None
    assert unfinished.selection_nll is unfinished.checkpoint_url is None
    assert unfinished.before == unfinished.after == {}


def test_a_view_of_the_dense_files_is_no_checkpoint() -> None:
    """Its address is the dense model's: whoever loaded it would get all blocks."""
    done = trial("a", CUT, after=texts(wiki=30.0))
    assert done.result is not None
    model = replace(done.result.model, num_blocks=30).view(CUT.kept_blocks)
    view = replace(done, result=replace(done.result, runs=(replace(done.result.runs[-1], model=model),)))
    row, exported = trial_rows(replace(experiment(), trials=(view,))), trial_rows(replace(experiment(), trials=(done,)))
    assert row[0].checkpoint_url is None
    assert exported[0].checkpoint_url == "s3://bucket/team/models/a/a1"


def test_headline_quotes_report_scores_of_the_best() -> None:
    first = report_view(experiment()).sizes[0]
    assert first.lead == "6 of 30 blocks removed (15.8\N{NO-BREAK SPACE}% of parameters)"
    assert first.choice == "best of 2 finished trials is ppl+taylor 20% cpt lr 0.0003 seed 0 (#1)."
    assert first.scores == (
        "wikitext2 (report): perplexity 91.07 before retraining → 34.55 after; dense 25.31, so 1.37 × dense.",
        "austen (report): perplexity 73.50 before retraining → 59.02 after; dense 36.02, so 1.64 × dense.",
    )


def test_headline_says_where_its_scores_are_selection_scores_or_missing() -> None:
    only = trial("a", CUT, after=texts(wiki=30.0))
    view = report_view(replace(experiment(), trials=(only,)))
    summary = size_summaries(experiment(), view.rows, {})[0]
    assert summary.choice.startswith("the only finished trial is ")
    assert summary.scores == ("wiki (selection): perplexity after retraining 30.00.",)


def test_headline_claims_nothing_without_a_result() -> None:
    view = report_view(without_results())
    assert [size.choice for size in view.sizes] == [
        "no result to choose from (2 trials: 2 failed).",
        "no result to choose from (4 trials: 4 failed).",
    ]
    assert view.trade_off == ("No trial has finished, so there is nothing to compare yet.",)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.perplexity(24.066), "24.07"),
        (formats.perplexity(25_310.4), "25,310"),
        (formats.perplexity(3_140_000.0), "3.1e6"),
        (formats.perplexity(None), "—"),
        (formats.perplexity(float("inf")), "inf"),
        (formats.compact(20_480), "20.5 k"),
        (formats.compact(999_999), "1 M"),
        (formats.compact(271e9), "271 B"),
        (formats.compact(0), "0"),
        (formats.compact(None), "—"),
        (formats.parameters(6_738_415_616), "6.738 B"),
        (formats.learning_rate(1e-4), "1e-4"),
        (formats.learning_rate(2.5e-5), "2.5e-5"),
        (formats.learning_rate(0.0), "0"),
        (formats.significant(25_310.44), "25,310"),
        (formats.significant(0.0123456), "0.012346"),
        (formats.significant(-3.25, 3), "-3.25"),
        (formats.significant(0.0), "0.0000"),
        (formats.share(0.453), "45\N{NO-BREAK SPACE}%"),
        (formats.share(0.0), "0\N{NO-BREAK SPACE}%"),
        (formats.share(1.0), "100\N{NO-BREAK SPACE}%"),
        (formats.share(0.0004), "<1\N{NO-BREAK SPACE}%"),
        (formats.share(0.9996), ">99\N{NO-BREAK SPACE}%"),
        (formats.block_ranges((0, 1, 2, 5, 8, 9)), "0–2, 5, 8–9"),
        (formats.block_ranges(()), "—"),
        (formats.first_line("  first\nsecond"), "first"),
        (formats.first_line("x" * 200, limit=10), "x" * 9 + "…"),
        (formats.seconds(None), "—"),
        (formats.accuracy(0.6123, 0.0112), "0.612 ± 0.011"),
        (formats.accuracy(0.6123), "0.612"),
    ],
)
def test_numbers_as_written(written: str, expected: str) -> None:
    assert written == expected


def test_labels_are_spread_without_crossing() -> None:
    assert spread([1.0, 5.0], 0.5) == [1.0, 5.0]
    assert spread([3.0, 3.0], 1.0) == [2.5, 3.5]
    places = spread([4.2, 1.0, 1.1, 1.2, 4.0], 0.5)
    ordered = sorted(places)
    assert all(b - a >= 0.5 - 1e-9 for a, b in pairwise(ordered))
    assert sorted(range(5), key=lambda index: places[index]) == [1, 2, 3, 4, 0]
