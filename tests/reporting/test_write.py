import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.records import EvalScores, Experiment, from_json
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import FAILURE, experiment, plan, text, texts, trial, without_results
from tests.reporting.page import Page


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(experiment(), tmp_path_factory.mktemp("report") / "new" / "directory").parent


@pytest.fixture(scope="module")
def page(directory: Path) -> Page:
    return Page((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "trials.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_writes_the_five_files(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == [
        "pareto.png",
        "report.html",
        "report.md",
        "trials.csv",
        "trials.json",
    ]
    assert (directory / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_whole_experiment(directory: Path) -> None:
    assert from_json(Experiment, (directory / "trials.json").read_bytes()) == experiment()


def test_equal_records_give_equal_bytes(directory: Path, tmp_path: Path) -> None:
    write_report(experiment(), tmp_path)
    for path in directory.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_page_loads_nothing_from_elsewhere(page: Page) -> None:
    addresses = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if attributes.get(key)]
    assert addresses
    assert all(address.startswith("#") for address in addresses if address)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_style_loads_nothing_from_elsewhere(directory: Path) -> None:
    html = (directory / "report.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)


def test_internal_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for _, attributes in page.tags if attributes.get("href")}
    assert {f"#{name}" for name in ids if name} >= targets


def test_page_shows_every_figure(page: Page) -> None:
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert labels == [
        "Perplexity on wikitext2 (report) against parameters",
        "Perplexity on austen (report) against parameters",
        "Piqa acc against parameters",
        "Perplexity on wikitext2 (report) against accelerator hours",
        "Piqa acc against accelerator hours",
        "ppl score by block",
        "taylor score by block",
        "Training loss against tokens",
    ]
    assert all("width" not in attributes for tag, attributes in page.tags if tag == "svg")


def test_missing_is_a_dash_and_never_zero(page: Page) -> None:
    unfinished = page.rows["trial-6"]
    assert unfinished[-2:] == ["waiting", "—"]
    # Selection NLL, two selection and two report texts before and after.
    assert unfinished[8:17] == ["—"] * 9
    assert not {"0.0", "0.00", "0.000", "None", "nan"} & set(unfinished)
    failed = page.rows["trial-5"]
    assert failed[13:17] == ["310.20", "—", "201.70", "—"]
    assert failed[-2] == "failed: OutOfMemoryError: the worker on node 10.0.3.7 asked for 81.2 GiB"


def test_a_finished_trial_has_its_own_numbers_in_its_columns(page: Page) -> None:
    best = page.rows["trial-2"]
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in best[:8]] == [
        "ppl 20 %, taylor 20 % best", "2", "24", "20.0 %", "15.8 %", "cpt", "3e-4", "0",
    ]  # fmt: skip
    assert best[9:] == [
        "83.21", "32.81", "92.40", "61.40", "91.07", "34.55", "73.50", "59.02",
        "113.3 M", "9, 11, 13, 17, 20, 24", "41 k", "99.9", "0.0555", "131", "410", "done", "s3://bucket/team/models/f2/a1",
    ]  # fmt: skip
    assert [name for name, cells in page.rows.items() if "best" in cells[0]] == ["trial-2", "trial-4"]


def test_dense_stands_first(page: Page) -> None:
    first_column = [cells[0].strip() for cells in page.rows.values() if cells]
    assert first_column.index("dense") < min(first_column.index(x) for x in first_column if x.startswith("ppl\xa0"))


def test_every_row_fills_the_heading(page: Page) -> None:
    heading = next(cells for cells in page.rows.values() if cells[:2] == ["criterion and ratio", "#"])
    assert {len(page.rows[f"trial-{number}"]) for number in range(1, 7)} == {len(heading)}


def test_protocol_of_every_number_is_stated(page: Page) -> None:
    full = experiment()
    scores = [full.dense_selection, full.dense_report]
    for stated in (
        *(x.protocol for group in scores for x in (*group.perplexity, *group.tasks)),
        *(x.protocol for x in full.unit_scores),
        *full.notes,
        "AutoModelForCausalLM.from_pretrained(<dir>)",
        "transformers 5.23.0",
        full.dense_url,
    ):
        assert stated in page.text


def test_csv_has_one_row_per_trial_that_reads_back(table: list[dict[str, str]]) -> None:
    full = {trial.spec.fingerprint: trial for trial in experiment().trials}
    assert sorted(row["fingerprint"] for row in table) == sorted(full)
    for row in table:
        spec, result = full[row["fingerprint"]].spec, full[row["fingerprint"]].result
        assert tuple(map(int, row["removed_blocks"].split())) == spec.plan.removed_blocks
        assert row["criteria"].split(";") == [label.criterion for label in spec.plan.labels]
        assert [float(x) for x in row["ratios"].split(";")] == [label.target.ratio for label in spec.plan.labels]
        assert row["learning_rates"] == repr(spec.learning_rate)
        assert int(row["parameters"]) == spec.plan.size.parameters
        if result:
            assert float(row["selection_after_mean_nll"]) == result.after.mean_nll
            assert float(row["training_seconds"]) == result.training_seconds
            for score in result.after.perplexity:
                column = f"selection_after_perplexity:{score.source}:{score.protocol}"
                assert float(row[column]) == score.perplexity


def test_csv_has_what_was_removed_before_all_scores(tmp_path: Path) -> None:
    full = experiment()
    control = trial("d", plan((), ("dense", 0.0)), after=texts(wiki=24.0), control="dense")
    write_report(replace(full, trials=(control, *full.trials)), tmp_path)
    names = (tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert names[names.index("missing_scores") + 1 :][:2] == ["kept_blocks", "removed_blocks"]


def test_csv_leaves_missing_cells_empty_and_keeps_the_cause(table: list[dict[str, str]]) -> None:
    failed = next(row for row in table if row["status"] == "failed")
    assert failed["failure"] == FAILURE
    assert failed["tokens"] == failed["checkpoint_url"] == failed["selection_after_mean_nll"] == ""
    protocol = experiment().dense_report.perplexity[0].protocol
    assert failed[f"report_after_perplexity:wikitext2:{protocol}"] == ""
    assert failed[f"report_before_perplexity:wikitext2:{protocol}"] == "310.2"
    assert failed[f"report_dense_perplexity:wikitext2:{protocol}"] == "25.31"


HOSTILE = "</title></svg>'\"><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{$ | `x` {{ 7*7 }}"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    dense = EvalScores(perplexity=(text(HOSTILE, 25.0, HOSTILE),))
    bad = trial(
        "h",
        plan((9, 10), (HOSTILE, 0.07)),
        before=dense,
        after=dense,
        report_after=dense,
        method=HOSTILE,
    )
    failed = trial("g", plan((9,), (HOSTILE, 0.03)), failure=HOSTILE)
    full = experiment()
    hostile = replace(
        full,
        name=HOSTILE,
        model=HOSTILE,
        dense_url="javascript:alert(1)//" + HOSTILE,
        dense_selection=dense,
        dense_report=dense,
        unit_scores=(replace(full.unit_scores[0], criterion=HOSTILE, protocol=HOSTILE),),
        trials=(bad, failed),
        notes=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
    )
    page = Page(write_report(hostile, tmp_path).read_text(encoding="utf-8"))
    assert page.count("script") == 2
    assert page.count("img") == 0
    assert "<" not in page.scripts[0]
    assert HOSTILE in json.loads(page.scripts[0])["trials.csv"].replace('""', '"')
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert not any((attributes.get("href") or "").startswith("javascript") for _, attributes in page.tags)
    assert page.text.count("{{ 7*7 }}") > 5
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script>", re.sub(r"`[^`\n]*`", "", markdown))
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if " removed " in line or "cpt" in line}
    assert len(cells) == 1


def test_model_addresses_on_the_web_are_links(tmp_path: Path) -> None:
    full = replace(empty(), dense_url="https://host/models/dense")
    page = Page(write_report(full, tmp_path).read_text(encoding="utf-8"))
    outside = {a["href"] for tag, a in page.tags if a.get("href") and not (a["href"] or "").startswith("#")}
    assert outside == {"https://host/models/dense"}


def empty() -> Experiment:
    return replace(
        experiment(),
        trials=(),
        unit_scores=(),
        dense_selection=EvalScores(),
        dense_report=EvalScores(),
        notes=(),
        versions={},
    )


def no_history() -> Experiment:
    """One finished trial that was too short to report, on texts without a dense score."""
    done = trial("a", plan((9, 10), ("ppl", 0.07)), after=texts(wiki=30.0))
    assert done.result is not None
    runs = tuple(replace(run, history=(), tokens=0, seconds=0.0) for run in done.result.runs)
    return replace(empty(), trials=(replace(done, result=replace(done.result, runs=runs)),))


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            without_results,
            ["No result to choose from", "nothing to compare", "No report scores were measured", "6 failed"],
        ),
        (empty, ["nothing to compare", "No perplexity was measured", "No block scores", "0 trials", "No tasks"]),
        (no_history, ["The only finished trial", "No finished trial has a loss history", "No report scores"]),
    ],
)
def test_says_what_it_does_not_have(case, says: list[str], tmp_path: Path) -> None:
    page = Page(write_report(case(), tmp_path).read_text(encoding="utf-8"))
    for statement in says:
        assert statement in page.text
    assert (tmp_path / "pareto.png").stat().st_size > 0
    assert "—" in page.text
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert len(list(reader)) == len(case().trials)
        assert "fingerprint" in (reader.fieldnames or ())


def test_survives_scores_that_are_not_finite(tmp_path: Path) -> None:
    """A cut of 80 % may overflow; the report must still come."""
    full = experiment()
    lost = trial("l", plan((9, 10), ("ppl", 0.07)), after=texts(wiki=math.inf), report_after=texts(wikitext2=math.inf))
    scores = replace(full.unit_scores[0], scores=(math.inf, *full.unit_scores[0].scores[1:]))
    page = Page(
        write_report(replace(full, trials=(*full.trials, lost), unit_scores=(scores,)), tmp_path).read_text("utf-8")
    )
    assert "inf" in page.rows["trial-7"]
    assert "No result to choose from" in page.text


def test_markdown_shows_the_plot_and_the_numbers(directory: Path) -> None:
    markdown = (directory / "report.md").read_text(encoding="utf-8")
    assert "](pareto.png)" in markdown
    assert "91.07 → 34.55" in markdown
    assert "s3://bucket/team/models/f2/a1" in markdown
    trials = markdown[markdown.index("## Trials") :]
    rows = [line for line in trials.splitlines() if re.match(r"\| (\d+ |#|--:|\| dense)", line)]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert len(rows) >= 8
