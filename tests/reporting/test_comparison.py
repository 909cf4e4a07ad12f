"""The section on retraining methods: who is compared with whom, and what is said of it."""

import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from shortened_llm.records import EvalScores, Experiment, ReportedTrial
from shortened_llm.reporting.comparison import ComparisonTable, MethodsSection
from shortened_llm.reporting.entrants import Entrant
from shortened_llm.reporting.flat import to_csv
from shortened_llm.reporting.paired import Difference
from shortened_llm.reporting.plots import curves
from shortened_llm.reporting.view import report_view
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import BOS_FIRST, FAILURE, HELD_OUT, compared, trial
from tests.reporting.page import Page


def section(full: Experiment) -> MethodsSection:
    (found,) = report_view(full).comparisons
    return found


def only(full: Experiment, keep: Callable[[ReportedTrial], bool]) -> Experiment:
    return replace(full, trials=tuple(one for one in full.trials if keep(one)))


def table(full: Experiment, label: str, plan: int = 0) -> ComparisonTable:
    return next(found for found in section(full).plans[plan].tables if found.label == label)


def entrant(found: ComparisonTable, name: str) -> Entrant:
    return next(one for one in found.entrants if one.name == name)


def difference_to_reference(full: Experiment, found: ComparisonTable, name: str) -> Difference | None:
    """On the first text."""
    return entrant(found, name).difference(found.reference, section(full).columns[0])


def pairs(full: Experiment, found: ComparisonTable) -> dict[str, list[Difference | None]]:
    """`lora − cpt` -> differences on each text."""
    return {
        f"{second.name} − {first.name}": [second.difference(first, column) for column in section(full).columns]
        for first, second in found.pairs
    }


def is_corpus(one: ReportedTrial) -> bool:
    return one.spec.train_on == "corpus" and not one.spec.equal_seconds


def test_three_budgets_are_three_tables_and_never_mix() -> None:
    for plan in section(compared()).plans:
        names = {found.label: [one.name for one in found.entrants] for found in plan.tables}
        bases = ["untrained", "dense"]
        assert names == {
            "Equal tokens": ["cpt", "lora", "distill", "cpt_lora", "dense + cpt", "random blocks + cpt", *bases],
            "Equal seconds": ["cpt", "lora", "distill", *bases],
            "Own recipe": ["cpt", "lora on instructions", "cpt_lora on instructions", *bases],
        }
        tokens = {one.tokens for one in plan.tables[0].entrants if one.rows}
        assert len(tokens) == 1


def test_each_method_enters_with_its_best_rate_by_selection_and_says_of_how_many() -> None:
    found = table(compared(), "Equal tokens")
    rates = {one.name: (one.learning_rates, one.num_rates) for one in found.entrants}
    assert rates["cpt"] == ((3e-4,), 2)
    assert rates["cpt_lora"] == ((3e-4, 3e-3), 1)
    assert {name: number for name, (_, number) in rates.items() if number} == {
        "cpt": 2, "lora": 2, "distill": 1, "cpt_lora": 1, "dense + cpt": 1, "random blocks + cpt": 1,
    }  # fmt: skip


def test_the_best_rate_is_chosen_over_all_seeds_and_never_by_report_scores() -> None:
    """One seed of the other rate has the lowest selection loss of all; the report scores favour that rate too."""

    def changed(one: ReportedTrial) -> ReportedTrial:
        if one.spec.learning_rate != 1e-4 or one.spec.method != "cpt" or one.result is None:
            return one
        lucky = 0.1 if one.spec.seed == 0 else -0.5
        lower = tuple(replace(text, mean_nll=text.mean_nll - lucky) for text in one.result.after.perplexity)
        better = tuple(replace(text, perplexity=1.5) for text in one.after.perplexity)
        return replace(
            one, result=replace(one.result, after=EvalScores(perplexity=lower)), after=EvalScores(perplexity=better)
        )

    full = compared()
    full = replace(full, trials=tuple(map(changed, full.trials)))
    assert entrant(table(full, "Equal tokens"), "cpt").learning_rates == (3e-4,)


def test_a_perplexity_is_the_geometric_mean_and_a_difference_is_in_nats_to_cpt() -> None:
    found = table(compared(), "Equal tokens")
    difference = difference_to_reference(compared(), found, "lora")
    wiki = section(compared()).columns[0]
    perplexities = [entrant(found, name).perplexity(wiki) for name in ("lora", "cpt")]
    assert found.reference is entrant(found, "cpt")
    assert difference is not None
    assert difference.standard_error is not None
    assert perplexities[0] is not None
    assert perplexities[1] is not None
    assert difference.mean == pytest.approx(math.log(perplexities[0] / perplexities[1]), abs=1e-6)
    assert len(difference.per_seed) == 2
    assert difference.num_clusters == 160


def test_every_pair_of_methods_is_judged_and_no_control_is_among_them() -> None:
    found = pairs(compared(), table(compared(), "Equal tokens"))
    assert list(found) == [
        "lora − cpt", "distill − cpt", "cpt_lora − cpt", "distill − lora", "cpt_lora − lora", "cpt_lora − distill",
        "dense + cpt − dense",
    ]  # fmt: skip
    verdicts = {name: [one and one.verdict for one in differences] for name, differences in found.items()}
    assert verdicts["distill − cpt"] == ["separated", "separated"]
    assert verdicts["cpt_lora − cpt"] == ["not separated: within 0.04 nats"] * 2
    signs = [difference.mean for difference in found["distill − cpt"] if difference]
    assert signs[0] > 0 > signs[1]


def test_what_the_dense_model_gains_by_the_same_training_is_told() -> None:
    wiki, austen = pairs(compared(), table(compared(), "Equal tokens"))["dense + cpt − dense"]
    assert wiki is not None
    assert (wiki.mean, wiki.standard_error) == (pytest.approx(-0.25, abs=0.01), pytest.approx(0.005, abs=0.005))
    assert wiki.stands_out
    assert austen is not None
    assert not austen.stands_out


def test_without_controls_nothing_is_said_of_them() -> None:
    full = only(compared(), lambda one: one.spec.control is None)
    found = table(full, "Equal tokens")
    assert {one.kind for one in found.entrants} == {"method", "untrained"}
    assert not any("dense" in name for name in pairs(full, found))


def test_a_control_belongs_to_the_plans_of_its_size_and_budget() -> None:
    for plan, tokens in enumerate((40_960, 81_920)):
        for name in ("dense + cpt", "random blocks + cpt"):
            control = entrant(table(compared(), "Equal tokens", plan), name)
            (size,) = {len(row.plan.removed_blocks) for row in control.rows}
            assert size == (0 if name.startswith("dense") else (6, 12)[plan])
            assert control.tokens == tokens


def test_one_seed_separates_nothing() -> None:
    full = only(compared(), lambda one: one.spec.seed == 0)
    found = pairs(full, table(full, "Equal tokens")).values()
    assert {difference.verdict for differences in found for difference in differences if difference} == {
        "one seed only"
    }  # fmt: skip


def test_different_seeds_are_paired_where_both_have_them_and_else_not_at_all() -> None:
    def keeps(one: ReportedTrial) -> bool:
        return is_corpus(one) and (one.spec.method != "distill" or one.spec.seed == 1)

    full = only(compared(), keeps)
    difference = difference_to_reference(full, table(full, "Equal tokens"), "distill")
    assert difference is not None
    assert difference.verdict == "one seed only"
    apart = only(compared(), lambda one: is_corpus(one) and one.spec.seed == (one.spec.method == "distill"))
    assert difference_to_reference(apart, table(apart, "Equal tokens"), "distill") is None


def test_a_method_that_failed_everywhere_keeps_its_line() -> None:
    def failed(one: ReportedTrial) -> ReportedTrial:
        if one.spec.method != "distill":
            return one
        return replace(one, result=None, failure=FAILURE, before=EvalScores(), after=EvalScores())

    full = compared()
    full = replace(full, trials=tuple(map(failed, full.trials)))
    distill = entrant(table(full, "Equal tokens"), "distill")
    assert distill.tokens is distill.perplexity(section(full).columns[0]) is None
    assert difference_to_reference(full, table(full, "Equal tokens"), "distill") is None
    assert (distill.num_unfinished, distill.num_trials) == (2, 2)
    nothing = tuple(replace(one, result=None, before=EvalScores(), after=EvalScores()) for one in full.trials)
    assert report_view(replace(full, trials=nothing)).comparisons == ()


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(lambda one: one.spec.method == "cpt" and one.spec.control is None, id="one method"),
        pytest.param(lambda one: False, id="no trials"),
    ],
)
def test_one_method_is_no_comparison(keep: Callable[[ReportedTrial], bool], tmp_path: Path) -> None:
    page = Page(write_report(only(compared(), keep), tmp_path).read_text(encoding="utf-8"))
    assert "Retraining methods" not in page.text


def test_an_untrained_trial_is_no_method() -> None:
    full = only(compared(), lambda one: one.spec.method == "cpt" and one.spec.control is None)
    first = full.trials[0]
    bare = replace(first.spec, method="none", recipes=())
    assert first.result is not None
    untrained = replace(first, spec=bare, result=replace(first.result, runs=()))
    view = report_view(replace(full, trials=(*full.trials, untrained)))
    assert view.comparisons == ()
    row = next(row for row in view.rows if row.method == "none")
    assert (row.learning_rates, row.seed) == ((), None)


def test_missing_report_scores_leave_gaps_or_give_way_to_selection_scores(tmp_path: Path) -> None:
    full = compared()
    some = replace(
        full,
        trials=tuple(replace(one, after=EvalScores()) if one.spec.method == "distill" else one for one in full.trials),
    )
    gap = entrant(table(some, "Equal tokens"), "distill")
    assert [gap.perplexity(column) for column in section(some).columns] == [None, None]
    assert difference_to_reference(some, table(some, "Equal tokens"), "distill") is None
    none = replace(
        full,
        dense_report=EvalScores(),
        trials=tuple(replace(one, before=EvalScores(), after=EvalScores()) for one in full.trials),
    )
    assert {column.role for column in section(none).columns} == {"selection"}
    page = Page(write_report(none, tmp_path).read_text(encoding="utf-8"))
    assert f"{HELD_OUT}; these selection scores also chose the learning rates." in page.text


def test_texts_are_said_to_be_seen_or_not(tmp_path: Path) -> None:
    page = Page(write_report(compared(), tmp_path).read_text(encoding="utf-8"))
    assert f"wiki: {BOS_FIRST}; other documents of this source were trained on." in page.text
    assert f"austen: {BOS_FIRST}; never trained on." in page.text


def test_scores_without_documents_have_no_standard_error() -> None:
    def bare(one: ReportedTrial) -> ReportedTrial:
        texts = tuple(replace(text, document_nll=(), document_predictions=()) for text in one.after.perplexity)
        return replace(one, after=EvalScores(perplexity=texts))

    full = compared()
    full = replace(full, trials=tuple(map(bare, full.trials)))
    difference = difference_to_reference(full, table(full, "Equal tokens"), "lora")
    assert difference is not None
    assert (difference.verdict, difference.num_clusters) == ("not separated: no standard error", 0)


def test_the_page_shows_the_comparison(tmp_path: Path) -> None:
    page = Page(write_report(compared(), tmp_path).read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for said in (
        "Equal tokens", "Equal seconds", "Own recipe", "No order of the methods was expected", "best of 2",
        "between recipes, not between methods", "every pair of methods", "control: unpruned", "control: random blocks",
        "2 steps skipped (7, 8)", "1 loss spike (21)", "s3://bucket/team/adapters/t04/a1", "never the best of a size",
        "Validation loss", "lora on instructions", "equal seconds", "1 of 4 trials did not finish", "160 documents",
        "dense + cpt − dense",
    ):  # fmt: skip
        assert said in page.text, said
    (pair, *_) = (cells for cells in page.rows.values() if cells[:1] == ["lora − cpt"])
    assert re.match(r"\+0\.06\d ± 0\.00\dseparatedseeds: \+0\.\d{3}, \+0\.\d{3}; 160 documents", pair[1])
    heading = next(cells for cells in page.rows.values() if cells[:2] == ["criterion and ratio", "#"])
    assert len(page.rows["trial-1"]) == len(heading)


def test_best_of_a_size_is_no_control_and_the_line_joins_none() -> None:
    view = report_view(compared())
    assert not any(row.is_best and row.is_control for row in view.rows)
    assert [size.lead for size in view.sizes] == ["24 of 30 blocks", "18 of 30 blocks"]
    assert view.status_counts == "48 trials, 8 of them controls: 47 done, 1 failed"
    for panel in (panel for group in view.panel_groups for panel in group.panels):
        assert {point.row.trial.spec.control for point in panel.controls if point.row} == {"dense", "random"}
        assert not any(
            point.row and point.row.is_control for point in (*chain(*panel.optimal), *panel.after, *panel.before)
        )


def test_csv_has_what_tells_the_trials_apart() -> None:
    view = report_view(compared())
    rows = list(csv.DictReader(io.StringIO(to_csv(view.rows, view.columns, view.dense, ()))))
    found = {row["fingerprint"]: row for row in rows}
    wanted = ("control", "method", "train_on", "learning_rates", "seed", "equal_seconds", "budget_tokens")
    assert [found["t00"][name] for name in wanted] == ["", "cpt", "corpus", "0.0001", "0", "False", "40960"]
    assert [found["t07"][name] for name in wanted][1:4] == ["cpt_lora", "instructions", "0.0003;0.0001"]
    assert found["t08"]["equal_seconds"] == "True"
    assert found["t11"]["control"] == "dense"
    assert [found["t04"][name] for name in ("skipped_steps", "loss_spikes")] == ["2", "1"]
    assert found["t04"]["adapter_url"] == "s3://bucket/team/adapters/t04/a1"
    assert float(found["t00"]["accelerator_seconds"]) == 2 * float(found["t00"]["training_seconds"])


def test_the_runs_of_a_chain_follow_one_another() -> None:
    chain = next(one for one in compared().trials if one.spec.method == "cpt_lora" and is_corpus(one))
    assert chain.result is not None
    first, second = curves(chain.result.runs, lambda point: point.loss)
    assert first[-1][0] == 20_480
    assert second[0][0] > 20_480
    assert second[-1][0] == 40_960
    validated = curves(chain.result.runs, lambda point: point.validation_loss)
    assert [len(curve) for curve in validated] == [4, 4]


def test_a_plan_with_two_budgets_is_compared_at_each() -> None:
    """Two ratios may lead to one plan, with a budget each; equal seconds belong to the reference of their length."""
    full = only(compared(), lambda one: len(one.spec.plan.removed_blocks) == 6)
    other = only(compared(), lambda one: len(one.spec.plan.removed_blocks) == 12 and one.spec.control is None)
    plan = full.trials[0].spec.plan
    merged = tuple(replace(one, spec=replace(one.spec, plan=plan)) for one in other.trials)
    titles = [found.title for found in section(replace(full, trials=(*full.trials, *merged))).plans]
    assert titles == ["ppl 20%: 6 of 30 blocks removed, 41 k tokens", "ppl 20%: 6 of 30 blocks removed, 81.9 k tokens"]
    for index, seconds in enumerate((103, 206)):
        timed = table(replace(full, trials=(*full.trials, *merged)), "Equal seconds", index)
        assert entrant(timed, "lora").training_seconds == pytest.approx(seconds, abs=1)


def test_the_first_method_is_the_reference_where_there_is_no_cpt() -> None:
    full = only(compared(), lambda one: is_corpus(one) and one.spec.control is None and one.spec.method != "cpt")
    assert table(full, "Equal tokens").reference.name == "lora"


def test_the_curves_of_the_best_have_their_numbers(tmp_path: Path) -> None:
    html = write_report(compared(), tmp_path).read_text(encoding="utf-8")
    losses = html[html.index('aria-label="Training loss') :].split("</svg>")[0]
    assert set(re.findall(r">#(\d+)</text>", losses)) == {
        str(row.number) for row in report_view(compared()).rows if row.is_best
    }  # fmt: skip


def test_numbers_of_the_json_take_one_line_a_list(tmp_path: Path) -> None:
    write_report(compared(), tmp_path)
    written = (tmp_path / "trials.json").read_text(encoding="utf-8")
    assert re.search(r'"document_nll": \[[-\d., ]+\],?\n', written)
    assert written.count("\n") < 40_000


def test_trial_with_equal_seconds_is_named_so() -> None:
    one = trial("a", compared().trials[0].spec.plan, equal_seconds=True)
    assert one.spec.name == "ppl 20% cpt lr 0.0001 seed 0 at equal seconds"


def test_recipes_on_instructions_are_compared_without_any_on_the_corpus() -> None:
    full = only(compared(), lambda one: one.spec.train_on == "instructions")
    found = table(full, "Own recipe")
    assert [one.name for one in found.entrants][:2] == ["lora on instructions", "cpt_lora on instructions"]
    assert found.reference.name == "lora on instructions"
    assert section(full).plans[0].title == "ppl 20%: 6 of 30 blocks removed"


def test_trials_of_equal_seconds_need_their_reference() -> None:
    assert report_view(only(compared(), lambda one: one.spec.equal_seconds)).comparisons == ()
