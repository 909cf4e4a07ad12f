"""The page in a real browser: it loads without errors, is seen whole on a phone, sorts, unfolds and hands out files."""

import csv
import io
from pathlib import Path

import pytest

from shortened_llm.records import Experiment, from_json
from shortened_llm.reporting.write import without_lists, write_report
from tests.reporting.browser import CHROMIUM, PHONE, ask
from tests.reporting.experiments import everything, without_results

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(everything(), tmp_path_factory.mktemp("everything"))


def test_a_broken_page_is_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><script>nothing.at.all()</script>")
    with pytest.raises(AssertionError, match="nothing is not defined"):
        ask(broken, "1")


def test_figures_are_seen_and_nothing_is_fetched(page: Path) -> None:
    seen, fetched = ask(
        page,
        "[[...page.document.querySelectorAll('main svg')].map(svg => svg.getBoundingClientRect().height > 100),"
        " page.performance.getEntriesByType('resource').length]",
    )  # type: ignore[misc]
    assert len(seen) > 10
    assert all(seen)
    assert fetched == 0


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_the_page_never_scrolls_sideways(page: Path, width: int) -> None:
    """Wide tables scroll in their own boxes, also when everything is unfolded."""
    widths = ask(
        page,
        "(() => { for (const fold of page.document.querySelectorAll('details')) fold.open = true;"
        " const root = page.document.scrollingElement;"
        " const boxes = [...page.document.querySelectorAll('.scroll')];"
        " return [root.scrollWidth, boxes.some(box => box.scrollWidth > box.clientWidth)]; })()",
        width=width,
    )
    assert widths == [width, True]


def test_a_heading_sorts_and_a_second_click_turns_it_round(page: Path) -> None:
    first, second = ask(
        page,
        "(() => { const table = page.document.querySelector('#trials table');"
        " const button = [...table.querySelectorAll('button')].find(b => b.textContent === 'mean NLL after');"
        " const column = button.closest('th').cellIndex;"
        " const value = row => row.cells[column].dataset.value ?? null;"
        " const values = () => { button.click(); return [...table.tBodies[1].rows].map(value); };"
        " return [values(), values()]; })()",
    )  # type: ignore[misc]
    known = [float(value) for value in first if value is not None]
    assert len(known) > 40
    assert known == sorted(known)
    assert [float(value) for value in second if value is not None] == sorted(known, reverse=True)
    assert None not in first[: len(known)]


def test_every_numeric_heading_sorts_each_part_of_its_table(page: Path) -> None:
    tables = ask(
        page,
        "[...page.document.querySelectorAll('table')].filter(t => t.tHead && t.tHead.querySelector('button')).map("
        "table => [...table.tHead.querySelectorAll('th.n')].filter(th => th.querySelector('button')).map(heading => {"
        " heading.querySelector('button').click();"
        " return [...table.tBodies].map(body => [...body.rows].map("
        "row => row.cells[heading.cellIndex]?.dataset.value ?? null)); }))",
    )
    assert isinstance(tables, list)
    assert len(tables) >= 8
    for headings in tables:
        known = [[float(value) for value in part if value is not None] for parts in headings for part in parts]
        assert any(len(values) > 1 for values in known)
        assert all(values == sorted(values) for values in known)


def test_a_link_unfolds_the_details_of_its_trial(page: Path) -> None:
    opened = "[...page.document.querySelectorAll('details.trial[open]')].map(fold => fold.id)"
    assert ask(page, opened) == []
    assert ask(page, opened, fragment="#details-5") == ["details-5"]


def test_downloads_hold_the_trials_without_the_long_lists(page: Path) -> None:
    files = ask(page, "JSON.parse(page.document.getElementById('files').textContent)")
    assert isinstance(files, dict)
    assert from_json(Experiment, files["trials.json"]) == without_lists(everything())
    assert len(list(csv.DictReader(io.StringIO(files["trials.csv"])))) == len(everything().trials)
    assert files["trials.csv"] == (page.parent / "trials.csv").read_text(encoding="utf-8")
    assert 'item_bits_per_byte":[0' not in files["trials.json"]


def test_a_report_without_results_fits_a_phone_too(tmp_path: Path) -> None:
    page = write_report(without_results(), tmp_path)
    assert ask(page, "page.document.scrollingElement.scrollWidth", width=PHONE) == PHONE
