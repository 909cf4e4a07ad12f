"""What a report says of block scores: marks of undecided blocks, missing scores, calibrations, plots."""

import io
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from shortened_llm.records import Experiment, UnitScores, from_json
from shortened_llm.reporting.certainty import chances, undecided_units
from shortened_llm.reporting.formats import UNDECIDED
from shortened_llm.reporting.heat import heat_rows
from shortened_llm.reporting.score_plot import RING, draw_scores, figure_width, score_axis
from shortened_llm.reporting.style import new_figure
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import (
    HELD_OUT,
    NUM_BLOCKS,
    PROTECTED,
    experiment,
    nine_criteria,
    partly_scored,
    plan,
    texts,
    trial,
    unit_scores,
    unscored,
    with_cuts,
)
from tests.reporting.page import Page

SIX_OF_PPL = (4, 7, 9, 11, 13, 24)
UNDECIDED_PPL = with_cuts(unit_scores("ppl"), {6: {9: 0.453, 15: 0.611}, 12: {}})


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def mapped(page: Page, name: str) -> list[str]:
    """The cells of a line of the map, one per block."""
    (cells,) = (cells[1:] for cells in page.rows.values() if cells[:1] == [name] and len(cells) == NUM_BLOCKS + 1)
    return cells


def tips(scores: UnitScores) -> list[str]:
    """What the pointer shows over each block of the map."""
    (row,) = heat_rows([scores], [])
    return [plain(cell.tip) for cell in row.cells]


def report(directory: Path, *scores: UnitScores) -> Page:
    return Page(write_report(searched(*scores), directory).read_text(encoding="utf-8"))


def searched(*scores: UnitScores) -> Experiment:
    """A search that pruned 6 and 12 blocks by each criterion."""
    trials = [
        trial(
            f"{x.ranking}{count}",
            plan(x.removed(count), (x.criterion, count / 30, x.calibration)),
            after=texts(HELD_OUT, wiki=30),
        )
        for x in scores
        for count in (6, 12)
    ]
    return replace(experiment(), trials=tuple(trials), unit_scores=scores)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(directory, *nine_criteria())
    return directory


@pytest.fixture(scope="module")
def nine_page(nine: Path) -> Page:
    return Page((nine / "report.html").read_text(encoding="utf-8"))


def test_the_fixture_removes_what_the_tests_expect() -> None:
    assert UNDECIDED_PPL.removed(6) == SIX_OF_PPL


def test_a_block_is_marked_if_any_cut_leaves_it_undecided() -> None:
    scores = with_cuts(unit_scores("ppl"), {6: {9: 0.453}, 12: {8: 0.06, 26: 0.96}})
    assert undecided_units(scores) == (8, 9)
    assert undecided_units(unit_scores("ppl")) == ()


def test_chances_of_a_block_at_every_cut() -> None:
    scores = with_cuts(unit_scores("ppl"), {6: {9: 0.453, 8: 0.0004}, 12: {}})
    assert plain(chances(scores, 9)) == "goes in 45 % of resamples at 6 removed, in 100 % at 12"
    assert plain(chances(scores, 8)) == "goes in <1 % of resamples at 6 removed, in 100 % at 12"
    assert chances(scores, PROTECTED[0]) == chances(unit_scores("ppl"), 9) == ""


def test_page_marks_undecided_units_in_map_plot_and_words(tmp_path: Path) -> None:
    page = report(tmp_path, UNDECIDED_PPL, unit_scores("magnitude"), replace(unit_scores("kl"), cuts=()))
    assert {block for block, cell in enumerate(mapped(page, "ppl")) if cell == UNDECIDED} == {9, 15}
    text = plain(page.text)
    assert "6 removed: undecided: 9 (goes in 45 %), 15 (goes in 61 %)" in text
    assert "12 removed: every block is decided" in text
    assert "no interval: there are no resamples" in text
    assert "no interval: no cut was requested" in text
    assert f"{UNDECIDED} undecided at some requested cut: within the noise of the calibration text" in text
    assert "5 % to 95 % of resamples: the share of 1,000 resamples of the calibration sequences (bootstrap" in text
    titles = [plain(attributes.get("title") or "") for tag, attributes in page.tags if tag == "td"]
    assert any("goes in 45 % of resamples at 6 removed, in 100 % at 12" in title for title in titles)
    html = plain((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"<title>block 9: [\d.]+ ± [\d.]+; goes in 45 % of resamples at 6 removed", html)


def test_page_without_resamples_has_neither_mark_nor_its_legend(tmp_path: Path) -> None:
    page = report(tmp_path, unit_scores("magnitude"))
    assert UNDECIDED not in page.text
    assert "bootstrap" not in page.text


def test_a_score_that_is_missing_has_no_rank(tmp_path: Path) -> None:
    scores = partly_scored("greedy_ppl")
    found = tips(scores)
    assert found[0] == "greedy_ppl, block 0, not scored, protected"
    assert [block for block, tip in enumerate(found) if "not scored" in tip] == list(PROTECTED)
    assert found[4] == "greedy_ppl, block 4: 2.5826 ± 0.40; removal rank 1 of 24"
    page = report(tmp_path, scores, replace(scores, criterion="unprotected", protected=()))
    assert [block for block, cell in enumerate(mapped(page, "greedy_ppl")) if cell == "✕"] == list(PROTECTED)
    assert [block for block, cell in enumerate(mapped(page, "unprotected")) if cell == "–"] == list(PROTECTED)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>block 4: " in html
    assert "<title>block 0: " not in html


def test_a_missing_standard_error_leaves_the_score() -> None:
    errors = tuple(None if block % 2 else 0.25 for block in range(NUM_BLOCKS))
    found = tips(replace(unit_scores("kl"), standard_errors=errors))
    assert "block 10: 2.8711 ± 0.25;" in found[10]
    assert "block 11: 2.9386;" in found[11]


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param((0.0,) * NUM_BLOCKS, id="all zero"),
        pytest.param((7.5,) * NUM_BLOCKS, id="all equal"),
        pytest.param(tuple(0.1 * (block - 12) for block in range(NUM_BLOCKS)), id="negative"),
        pytest.param((0.0, *(10.0 ** (block / 4) for block in range(29))), id="zero and far"),
        pytest.param(tuple(10.0 ** (block / 3 - 5) for block in range(NUM_BLOCKS)), id="many decades"),
        pytest.param((*(math.inf,) * 5, *range(25)), id="infinite"),
        pytest.param((None,) * NUM_BLOCKS, id="none"),
        pytest.param((*(None,) * 29, 3.0), id="one protected score"),
    ],
)
@pytest.mark.parametrize("error", [None, 0.0, 5.0, math.inf])
def test_any_scores_are_drawn_without_a_warning(scores: tuple[float | None, ...], error: float | None) -> None:
    odd = replace(unit_scores("kl"), scores=scores, standard_errors=(error,) * NUM_BLOCKS)
    axis = score_axis(odd)
    assert math.isfinite(axis.low)
    assert axis.low < axis.high < math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn_axes(odd).figure.savefig(io.BytesIO(), format="svg")


def test_a_page_of_a_criterion_without_any_score_still_comes(tmp_path: Path) -> None:
    assert set(mapped(report(tmp_path, replace(unscored(), protected=())), "greedy_ppl")) == {"–"}


def test_places_of_a_ranking_are_linear_and_scores_that_span_far_are_not() -> None:
    axes = {scores.criterion: score_axis(scores) for scores in nine_criteria()}
    assert [criterion for criterion, axis in axes.items() if axis.log] == ["kl"]
    # Bars that reach below zero leave a log axis room for the lowest score.
    assert 0 < axes["kl"].low < 1e-4 * 1.4**2


def test_a_protected_outlier_does_not_flatten_the_blocks_that_are_compared() -> None:
    scores = unit_scores("ppl")
    axis = score_axis(scores)
    compared = [
        score for block, score in enumerate(scores.scores) if score is not None and block not in scores.protected
    ]
    assert axis.low < min(compared)
    assert max(compared) < axis.high < 100


def test_calibrations_stand_side_by_side(tmp_path: Path) -> None:
    first = replace(with_cuts(unit_scores("ppl"), {6: {}, 12: {}}), calibration="seed 1234")
    second = replace(first, calibration="seed 5", order=first.order[::-1], fingerprint="other")
    page = Page(write_report(searched(first, second), tmp_path).read_text(encoding="utf-8"))
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    assert [label for label in labels if label.endswith("score by block")] == [
        "ppl (seed 1234) score by block",
        "ppl (seed 5) score by block",
    ]
    assert first.removed(6) != second.removed(6)
    assert mapped(page, "ppl (seed 1234)") != mapped(page, "ppl (seed 5)") or tips(first) != tips(second)
    assert "ppl (seed 5)\N{NO-BREAK SPACE}20" in page.text


def test_page_says_how_much_text_was_read(tmp_path: Path) -> None:
    assert "96,000" in report(tmp_path, replace(unit_scores("kl"), tokens=96_000)).text


def test_every_criterion_has_a_line_of_the_map_and_a_plot(nine_page: Page) -> None:
    for scores in nine_criteria():
        assert len(mapped(nine_page, scores.criterion)) == NUM_BLOCKS
    labels = [attributes["aria-label"] for tag, attributes in nine_page.tags if tag == "svg"]
    assert [label for label in labels if label and label.endswith(" score by block")] == [
        f"{scores.criterion} score by block" for scores in nine_criteria()
    ]


def test_json_carries_the_records(nine: Path) -> None:
    assert from_json(Experiment, (nine / "trials.json").read_bytes()).unit_scores == nine_criteria()


def drawn_axes(scores: UnitScores) -> Axes:
    axes = new_figure(figure_width(NUM_BLOCKS), 2.2).subplots()
    draw_scores(axes, scores, "#3b82c4")
    return axes


def drawn(axes: Axes, **wanted: object) -> list[float]:
    """The blocks of every line in the axes whose style is `wanted`."""
    return sorted(
        float(x)
        for line in axes.lines
        if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())
        for x in line.get_xdata()
    )


def test_plot_rings_undecided_units_and_leaves_protected_ones_hollow() -> None:
    axes = drawn_axes(UNDECIDED_PPL)
    assert drawn(axes, markersize=RING["markersize"]) == [9, 15]
    assert sorted(drawn(axes, markersize=4.5, markerfacecolor="none") + drawn(axes, marker="^")) == list(PROTECTED)
