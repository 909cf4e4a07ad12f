"""What a report says of block scores: marks of undecided blocks, missing scores, calibrations, plots."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.records import BlockScores, Experiment, from_json
from shortened_llm.reporting.certainty import chances, cut_sentences, text_read, undecided_blocks
from shortened_llm.reporting.formats import MISSING, UNDECIDED
from shortened_llm.reporting.score_plot import RING, save_score_plot, score_axis, score_figure
from shortened_llm.reporting.scores_table import score_lines, shades
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import (
    HELD_OUT,
    NUM_BLOCKS,
    PROTECTED,
    block_scores,
    experiment,
    nine_criteria,
    partly_scored,
    plan,
    texts,
    trial,
    unscored,
    with_cuts,
)
from tests.reporting.page import Page

SIX_OF_PPL = (4, 7, 9, 11, 13, 24)
UNDECIDED_PPL = with_cuts(block_scores("ppl"), {6: {9: 0.453, 15: 0.611}, 12: {}})


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def all_scores(page: Page) -> dict[int, list[str]]:
    """The cells after the block's number of each line of the table of all scores."""
    return {block: [cell.strip() for cell in page.rows[f"block-{block}"][1:]] for block in range(NUM_BLOCKS)}


def report(directory: Path, *scores: BlockScores) -> Page:
    return Page(write_report(searched(*scores), directory).read_text(encoding="utf-8"))


def searched(*scores: BlockScores) -> Experiment:
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
    return replace(experiment(), trials=tuple(trials), block_scores=scores)


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


def test_sentence_names_the_undecided_blocks_with_their_shares() -> None:
    at_six, at_twelve = map(plain, cut_sentences(UNDECIDED_PPL))
    assert at_six == (
        "ppl at 6 removed: blocks 9 (goes in 45 % of resamples) and 15 (61 %) "
        "are within the noise of the calibration text."
    )
    assert at_twelve == "ppl at 12 removed: every block is decided."


def test_sentence_of_a_single_block_and_of_none_resampled() -> None:
    one = with_cuts(block_scores("kl"), {6: {9: 0.5}})
    assert [plain(x) for x in cut_sentences(one)] == [
        "kl at 6 removed: block 9 (goes in 50 % of resamples) is within the noise of the calibration text."
    ]
    assert cut_sentences(block_scores("magnitude")) == [
        "magnitude has no interval: there are no resamples to tell one from."
    ]
    (nothing_asked,) = cut_sentences(replace(one, cuts=()))
    assert "no cut was requested" in nothing_asked


def test_a_block_is_marked_if_any_cut_leaves_it_undecided() -> None:
    scores = with_cuts(block_scores("ppl"), {6: {9: 0.453}, 12: {8: 0.06, 26: 0.96}})
    assert undecided_blocks(scores) == (8, 9)
    assert [line[0].undecided for line in score_lines([scores], NUM_BLOCKS)].count(True) == 2
    assert undecided_blocks(block_scores("ppl")) == ()


def test_chances_of_a_block_at_every_cut() -> None:
    scores = with_cuts(block_scores("ppl"), {6: {9: 0.453, 8: 0.0004}, 12: {}})
    assert plain(chances(scores, 9)) == "goes in 45 % of resamples at 6 removed, in 100 % at 12"
    assert plain(chances(scores, 8)) == "goes in <1 % of resamples at 6 removed, in 100 % at 12"
    assert chances(scores, PROTECTED[0]) == chances(block_scores("ppl"), 9) == ""


def test_page_marks_undecided_blocks_in_table_plot_and_words(tmp_path: Path) -> None:
    page = report(tmp_path, UNDECIDED_PPL, block_scores("magnitude"))
    marked = {block for block, cells in all_scores(page).items() if UNDECIDED in "".join(cells)}
    assert marked == {9, 15}
    text = plain(page.text)
    for sentence in (*cut_sentences(UNDECIDED_PPL), *cut_sentences(block_scores("magnitude"))):
        assert plain(sentence) in text
    assert f"{UNDECIDED} undecided: within the noise of the calibration text" in text
    assert "5 % to 95 % of resamples: the share of 1,000 resamples of the calibration sequences (bootstrap" in text
    titles = [plain(attributes.get("title") or "") for tag, attributes in page.tags if tag == "td"]
    assert "block 9 goes in 45 % of resamples at 6 removed, in 100 % at 12" in titles
    html = plain((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"<title>block 9: [\d.]+ ± [\d.]+; goes in 45 % of resamples at 6 removed", html)


def test_page_without_resamples_has_neither_mark_nor_its_legend(tmp_path: Path) -> None:
    page = report(tmp_path, block_scores("magnitude"))
    assert UNDECIDED not in page.text
    assert "bootstrap" not in page.text
    assert UNDECIDED not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_markdown_says_the_same(nine: Path) -> None:
    markdown = plain((nine / "report.md").read_text(encoding="utf-8"))
    unescaped = markdown.replace("\\", "")
    for scores in nine_criteria():
        for sentence in cut_sentences(scores):
            assert f"- {plain(sentence)}" in unescaped
    table = markdown[markdown.index("| block | ppl |") :]
    lines = table[: table.index("\n\n")].splitlines()
    assert len(lines) == NUM_BLOCKS + 2
    assert len({line.count("|") for line in lines}) == 1
    # ppl and kl leave block 9 undecided.
    assert lines[2 + 9].count(UNDECIDED) == 2
    # Block 0 has no greedy_ppl.
    assert [cell.strip() for cell in lines[2].split("|")][8] == f"p {MISSING}"


def test_a_score_that_is_missing_is_a_dash_without_rank(tmp_path: Path) -> None:
    page = report(tmp_path, partly_scored("greedy_ppl"))
    lines = all_scores(page)
    assert lines[0] == [MISSING, f"protected {MISSING}"]
    assert [block for block, cells in lines.items() if MISSING in cells[0]] == list(PROTECTED)
    assert lines[4] == ["2.5826 ± 0.40", "3"]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>block 4: " in html
    assert "<title>block 0: " not in html


def test_a_missing_standard_error_leaves_the_score(tmp_path: Path) -> None:
    scores = block_scores("kl")
    errors = tuple(None if block % 2 else 0.25 for block in range(NUM_BLOCKS))
    lines = all_scores(report(tmp_path, replace(scores, standard_errors=errors)))
    assert lines[10][0] == "2.8711 ± 0.25"
    assert lines[11][0] == "2.9386"


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
def test_any_scores_are_drawn_without_a_warning(
    scores: tuple[float | None, ...], error: float | None, tmp_path: Path
) -> None:
    odd = replace(block_scores("kl"), scores=scores, standard_errors=(error,) * NUM_BLOCKS)
    axis = score_axis(odd)
    assert math.isfinite(axis.low)
    assert axis.low < axis.high < math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_score_plot([odd], tmp_path / "scores.png")
        lines = score_lines([odd], NUM_BLOCKS)
    assert all(0 <= line[0].shade <= 1 for line in lines)


def test_a_page_of_a_criterion_without_any_score_still_comes(tmp_path: Path) -> None:
    lines = all_scores(report(tmp_path, unscored()))
    assert {cells[0] for cells in lines.values()} == {MISSING}


def test_places_of_a_ranking_are_linear_and_scores_that_span_far_are_not() -> None:
    axes = {scores.criterion: score_axis(scores) for scores in nine_criteria()}
    assert [criterion for criterion, axis in axes.items() if axis.log] == ["kl"]
    # Bars that reach below zero leave a log axis room for the lowest score.
    assert 0 < axes["kl"].low < 1e-4 * 1.4**2
    assert shades([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])[4] == 0.5


def test_shades_keep_the_order_and_separate_low_scores_under_an_outlier() -> None:
    shaded = shades([24.0, 30.5, None, 60.0, 25_000.0])
    assert shaded[0] == shaded[2] == 0
    assert shaded[-1] == 1
    assert list(shaded[3:]) == sorted(shaded[3:])
    # On a linear scale it would be at 0.001.
    assert shaded[3] > 0.1
    assert shades([2.0, 3.0, 4.0]) == (0.0, 0.5, 1.0)
    assert shades([5.0, 5.0]) == (0.0, 0.0)
    assert shades([None, None]) == (0.0, 0.0)


def test_a_protected_outlier_does_not_flatten_the_blocks_that_are_compared() -> None:
    scores = block_scores("ppl")
    axis = score_axis(scores)
    compared = [
        score for block, score in enumerate(scores.scores) if score is not None and block not in scores.protected
    ]
    assert axis.low < min(compared)
    assert max(compared) < axis.high < 100


def test_calibrations_stand_side_by_side(tmp_path: Path) -> None:
    first = replace(with_cuts(block_scores("ppl"), {6: {}, 12: {}}), calibration="seed 1234")
    second = replace(first, calibration="seed 5", order=first.order[::-1], fingerprint="other")
    searched_both = searched(first, second)
    page = Page(write_report(searched_both, tmp_path).read_text(encoding="utf-8"))
    assert ["", "ppl (seed 1234)", "ppl (seed 5)"] in page.rows.values()
    assert [label for label in labels_of(page) if label.endswith("score by block")] == [
        "ppl (seed 1234) score by block",
        "ppl (seed 5) score by block",
    ]
    assert first.removed(6) != second.removed(6)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| block | ppl (seed 1234) | ppl (seed 5) |" in markdown
    assert "ppl (seed 5)\N{NO-BREAK SPACE}20" in page.text


def labels_of(page: Page) -> list[str]:
    """What each drawing of the page is called."""
    return [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]


def test_page_says_how_much_text_was_read(tmp_path: Path) -> None:
    long = replace(block_scores("kl"), tokens=96_000)
    assert text_read(long) == "96,000 calibration tokens read in all"
    assert text_read(long) in report(tmp_path, long).text
    assert text_read(replace(long, tokens=0)) == ""


def test_every_line_of_nine_criteria_fills_the_heading(nine_page: Page) -> None:
    heading = next(cells for cells in nine_page.rows.values() if cells[:1] == ["block"] and "score" in cells)
    assert {len(cells) + 1 for cells in all_scores(nine_page).values()} == {len(heading)} == {1 + 2 * 9}
    assert [label for label in labels_of(nine_page) if label.endswith(" score by block")] == [
        f"{scores.criterion} score by block" for scores in nine_criteria()
    ]


def test_json_carries_the_records(nine: Path) -> None:
    assert from_json(Experiment, (nine / "trials.json").read_bytes()).block_scores == nine_criteria()


@pytest.mark.parametrize("criteria", [nine_criteria(), nine_criteria()[:4], nine_criteria()[:1], (unscored(),)])
def test_png_shows_every_criterion_once(criteria: Sequence[BlockScores], tmp_path: Path) -> None:
    parts = score_figure(criteria).subfigs
    assert [part.get_suptitle() for part in parts] == [scores.criterion for scores in criteria]
    assert [sum(axes.get_ylabel() == "score" for axes in part.axes) for part in parts] == [1] * len(criteria)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_score_plot(criteria, tmp_path / "scores.png")
    content = (tmp_path / "scores.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert width >= 700 * min(3, len(criteria))
    assert height >= 300 * -(-len(criteria) // 3)


def drawn(part, **wanted: object) -> list[list[float]]:
    """The blocks of every line in the part's axes whose style is `wanted`, per axes."""
    return [
        sorted(
            float(x)
            for line in axes.lines
            if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())
            for x in line.get_xdata()
        )
        for axes in part.axes
    ]


def test_plot_rings_undecided_blocks_and_leaves_protected_ones_hollow() -> None:
    (part,) = score_figure([UNDECIDED_PPL]).subfigs
    by_score, by_cut = drawn(part, markersize=RING["markersize"])
    assert by_score == [9, 15]
    assert by_cut == [9, 15]
    hollow = drawn(part, markersize=4.5, markerfacecolor="none")[0] + drawn(part, marker="^")[0]
    assert sorted(hollow) == list(PROTECTED)
    assert drawn(part, markersize=5.5)[1] == sorted([*UNDECIDED_PPL.removed(6), *UNDECIDED_PPL.removed(12)])


def test_plot_has_no_point_where_there_is_no_score() -> None:
    (part,) = score_figure([partly_scored("greedy_ppl")]).subfigs
    assert drawn(part, markersize=4.5)[0] == [block for block in range(NUM_BLOCKS) if block not in PROTECTED]


def test_cuts_are_drawn_for_criteria_without_resamples_too() -> None:
    ranked = block_scores("magnitude")
    _, part = score_figure([UNDECIDED_PPL, ranked]).subfigs
    assert drawn(part, markersize=5.5)[1] == sorted([*ranked.removed(6), *ranked.removed(12)])
    assert [label.get_text() for label in part.axes[1].get_yticklabels()] == ["6 removed", "12 removed"]


def test_sets_win_over_the_order_in_the_plot() -> None:
    spans = next(scores for scores in nine_criteria() if scores.criterion == "angular_span")
    (part,) = score_figure([spans]).subfigs
    assert drawn(part, markersize=5.5)[1] == list(range(11, 17))


def test_equal_scores_give_equal_pngs(tmp_path: Path) -> None:
    save_score_plot(nine_criteria()[:2], tmp_path / "a.png")
    save_score_plot(nine_criteria()[:2], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
