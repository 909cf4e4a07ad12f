from collections.abc import Sequence
from dataclasses import replace

import pytest

from shortened_llm.records import EvalScores, ReportedTrial
from shortened_llm.reporting import formats
from shortened_llm.reporting.headline import size_summaries
from shortened_llm.reporting.rows import best_of_each_target, trial_rows
from shortened_llm.reporting.view import report_view
from tests.reporting.experiments import (
    HELD_OUT,
    MISSING_TASK,
    everything,
    experiment,
    plan,
    texts,
    trial,
    without_results,
)

CUT = plan((9, 10), ("ppl", 0.07))


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def best(trials: Sequence[ReportedTrial]) -> list[ReportedTrial]:
    return list(best_of_each_target(trials).values())


def test_best_is_chosen_by_selection_scores_and_never_by_report_scores() -> None:
    selected = trial("a", CUT, after=texts(wiki=30.0), report_after=texts(austen=90.0))
    better_in_report = trial("b", CUT, after=texts(wiki=31.0), report_after=texts(austen=40.0))
    assert best([better_in_report, selected]) == [selected]


def test_best_takes_the_mean_of_log_perplexities_over_texts() -> None:
    # The mean perplexity would prefer the second: 60 < 65, but sqrt(10 * 120) < sqrt(60 * 60).
    first = trial("a", CUT, after=texts(wiki=10.0, c4=120.0))
    second = trial("b", CUT, after=texts(wiki=60.0, c4=60.0))
    assert best([second, first]) == [first]


def test_one_best_for_each_number_of_blocks_and_none_where_nothing_finished() -> None:
    rows = trial_rows(experiment())
    assert {(row.plan.size.blocks, row.trial.spec.fingerprint) for row in rows if row.is_best} == {
        (24, "f2"),
        (18, "f4"),
    }
    assert best_of_each_target(without_results().trials) == {}


def test_means_over_different_texts_never_compete() -> None:
    first = trial("a", CUT, after=texts(wiki=30.0))
    second = trial("b", CUT, after=texts(austen=20.0))
    assert best([first, second]) == [second, first]
    assert best([first, trial("c", CUT, after=texts("4096 tokens", wiki=9.0))]) != [first]


def test_a_tie_has_one_winner_whatever_the_order() -> None:
    first, second = trial("a", CUT, 3e-4, after=texts(wiki=30.0)), trial("b", CUT, 1e-4, after=texts(wiki=30.0))
    assert best([first, second]) == best([second, first]) == [first]


def test_rows_do_not_depend_on_the_order_of_the_records() -> None:
    full = experiment()
    backwards = replace(full, trials=tuple(reversed(full.trials)))
    for one in (full, backwards):
        assert [row.trial.spec.fingerprint for row in trial_rows(one)] == ["f2", "f1", "f4", "f3", "f6", "f5"]


def test_a_row_has_the_number_that_its_trial_has_in_the_log() -> None:
    """Its place in the experiment, wherever its scores put it."""
    full = experiment()
    assert [row.number for row in trial_rows(full)] == [2, 1, 4, 3, 6, 5]
    assert all(full.trials[row.number - 1] is row.trial for row in trial_rows(full))


def test_numbers_of_an_unfinished_trial_are_missing() -> None:
    unfinished = next(row for row in trial_rows(experiment()) if row.status == "waiting")
    assert unfinished.tokens is unfinished.training_seconds is unfinished.tokens_per_second is None
    assert unfinished.selection_nll is unfinished.checkpoint_url is None
    assert unfinished.before == unfinished.after == {}


def test_a_view_of_the_dense_files_is_no_checkpoint() -> None:
    """Its address is the dense model's: whoever loaded it would get all blocks."""
    done = trial("a", CUT, after=texts(wiki=30.0))
    assert done.result is not None
    view = replace(done, result=replace(done.result, runs=()))
    row, exported = trial_rows(replace(experiment(), trials=(view,))), trial_rows(replace(experiment(), trials=(done,)))
    assert row[0].checkpoint_url is None
    assert exported[0].checkpoint_url == "s3://bucket/team/models/a/a1"


def test_headline_quotes_report_scores_of_the_best() -> None:
    first = report_view(experiment()).sizes[0]
    assert (first.lead, first.choice) == ("24 of 30 blocks", "Best of 2 finished trials.")
    assert plain(first.size) == "113.3 M parameters, 15.8 % fewer"
    assert first.best is not None
    assert first.best.trial.spec.name == "ppl+taylor 20% cpt lr 0.0003 seed 0"
    assert [plain(fact.sentence) for fact in first.facts] == [
        "perplexity, wikitext2 1.37 × dense (34.55 against 25.31; 91.07 before retraining)",
        "perplexity, austen 1.64 × dense (59.02 against 36.02; 73.50 before retraining)",
        "piqa acc −0.077 (0.612 against 0.689; not paired by item)",
        "training 41 k tokens (0.0555 accelerator hours)",
    ]


def test_headline_says_where_its_scores_are_selection_scores_or_missing() -> None:
    only = trial("a", CUT, after=texts(HELD_OUT, wiki=30.0))
    view = report_view(replace(experiment(), trials=(only,)))
    summary = size_summaries(experiment(), view.rows, {}, view.columns, None)[0]
    assert summary.choice == "The only finished trial."
    assert summary.facts[0].sentence == "perplexity, wiki (selection) 30.00"


def test_headline_has_the_price_in_tasks_speed_and_memory_where_they_were_measured() -> None:
    first = report_view(everything()).sizes[0]
    facts = {fact.about: fact for fact in first.facts}
    assert list(facts) == [
        "perplexity, wiki", "perplexity, austen", "mean of 7 tasks", "speed", "peak memory", "training",
    ]  # fmt: skip
    assert facts["mean of 7 tasks"].key.startswith("−0.0")
    assert " ± 0.0" in facts["mean of 7 tasks"].key
    assert "ideal 1.24" in facts["speed"].also
    assert first.best is not None
    assert first.best.trial.after.efficiency is not None
    score = first.best.trial.after.efficiency
    ratio = score.points[-1].model.peak_memory_bytes / score.points[-1].dense.peak_memory_bytes
    assert plain(facts["peak memory"].key) == f"{ratio:.2f} × dense"


def test_headline_claims_nothing_without_a_result() -> None:
    view = report_view(without_results())
    assert [size.choice for size in view.sizes] == [
        "No result to choose from (2 trials: 2 failed).",
        "No result to choose from (4 trials: 4 failed).",
    ]


def test_a_report_is_partial_until_everything_is_there() -> None:
    partial = report_view(experiment()).partial
    assert partial is not None
    assert partial.lead == "This report is partial: 4 of 6 trials finished."
    assert partial.statements == ("1 waiting", "1 failed")
    done = replace(experiment(), trials=experiment().trials[:4])
    assert report_view(done).partial is None
    unmeasured = replace(done, trials=(replace(done.trials[0], before=EvalScores(), after=EvalScores()),))
    partial = report_view(unmeasured).partial
    assert partial is not None
    assert partial.statements == ("report scores of 1 finished trial not measured yet",)


def test_missing_scores_are_listed_once_with_their_cause_and_their_models() -> None:
    partial = report_view(everything()).partial
    assert partial is not None
    assert partial.statements == ("1 running", "1 waiting", "1 failed", "1 score missing")
    ((number,),) = partial.missing.values()
    assert list(partial.missing) == [MISSING_TASK]
    assert everything().trials[number - 1].spec.control == "random"
    both = replace(
        experiment(),
        dense_report=replace(experiment().dense_report, missing=(MISSING_TASK,)),
        trials=tuple(replace(t, after=replace(t.after, missing=(MISSING_TASK,))) for t in experiment().trials[:2]),
    )
    partial = report_view(both).partial
    assert partial is not None
    assert partial.missing == {MISSING_TASK: (0, 1, 2)}


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
        (formats.times(1.374), "1.37\N{NO-BREAK SPACE}×"),
        (formats.p_value(0.0312), "0.03"),
        (formats.p_value(0.00042), "0.0004"),
        (formats.p_value(0.0), "<1e-6"),
        (formats.p_value(None), "—"),
        (formats.gib(3 * 2**29), "1.50"),
        (formats.first_line("  first\nsecond"), "first"),
        (formats.first_line("x" * 200, limit=10), "x" * 9 + "…"),
        (formats.seconds(None), "—"),
        (formats.accuracy(0.6123, 0.0112), "0.612 ± 0.011"),
        (formats.accuracy(0.6123), "0.612"),
    ],
)
def test_numbers_as_written(written: str, expected: str) -> None:
    assert written == expected
