"""Tasks, agreement, own measures, speed and memory in tables: what shares a column or a mean, and what never does."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from shortened_llm.records import EvalScores, Experiment
from shortened_llm.reporting.efficiency import efficiency_tables
from shortened_llm.reporting.flat import to_csv
from shortened_llm.reporting.tasks import TasksSection
from shortened_llm.reporting.view import report_view
from shortened_llm.reporting.write import write_report
from tests.reporting.experiments import (
    NUM_BLOCKS,
    TASKS,
    efficiency,
    everything,
    experiment,
    partly_scored,
    plan,
    task_score,
    texts,
    trial,
    unit_scores,
)
from tests.reporting.page import Page

CUT = plan((9, 10), ("ppl", 0.07))


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def section(full: Experiment) -> TasksSection:
    found = report_view(full).tasks
    assert found is not None
    return found


def with_tasks(name: str, *tasks: object) -> object:
    return trial(name, CUT, after=texts(wiki=30.0), report_after=EvalScores(tasks=tasks))  # type: ignore[arg-type]


def searched(dense: tuple, *trials: object) -> Experiment:
    return replace(experiment(), trials=trials, dense_report=EvalScores(tasks=dense))  # type: ignore[arg-type]


def test_the_table_has_dense_the_best_and_controls_and_the_tasks_in_their_order() -> None:
    found = section(everything())
    assert [column.source for column in found.tasks] == [task for task, _, _ in TASKS]
    assert [column.source for column in found.texts] == ["wiki", "austen"]
    assert found.lines[0].row is None
    rows = [line.row for line in found.lines[1:]]
    assert [row.is_best for row in rows if row].count(True) == 2
    assert all(row.is_best or row.is_control for row in rows if row)


def test_a_mean_is_plain_and_of_models_that_have_every_task() -> None:
    found = section(everything())
    (own,) = found.sets
    dense = found.lines[0]
    assert dense.means[0] == pytest.approx(sum(dense.found[column].value for column in own) / 7)
    lacking = [line for line in found.lines if line.means[0] is None]
    assert [line.row.trial.spec.control for line in lacking if line.row] == ["random"]
    assert all(line.mean_differences[0] is None for line in lacking)
    for line in found.lines[1:]:
        if line.means[0] is not None:
            assert dense.means[0] is not None
            assert line.mean_differences[0] is not None
            assert line.mean_differences[0].mean == pytest.approx(line.means[0] - dense.means[0])


def test_other_protocols_have_columns_and_means_of_their_own() -> None:
    def both(share: float, seed: int, protocol: str) -> tuple:
        return tuple(task_score(t, "acc", share, seed=seed, protocol=protocol) for t in ("piqa", "boolq"))

    dense = (*both(0.7, 1, "0 shots"), *both(0.75, 1, "5 shots"))
    found = section(
        searched(dense, with_tasks("a", *both(0.6, 2, "0 shots")), with_tasks("b", *both(0.65, 3, "5 shots")))
    )
    assert [(column.source, column.protocol) for column in found.tasks] == [
        ("piqa", "0 shots"), ("boolq", "0 shots"), ("piqa", "5 shots"), ("boolq", "5 shots"),
    ]  # fmt: skip
    assert [{column.protocol for column in own} for own in found.sets] == [{"0 shots"}, {"5 shots"}]
    assert [[mean is not None for mean in line.means] for line in found.lines] == [
        [True, True], [True, False], [False, True],
    ]  # fmt: skip
    assert all({c.protocol for c in line.differences} == {c.protocol for c in line.found if c.kind == "task"}
               for line in found.lines[1:])  # fmt: skip


def test_no_mean_counts_a_task_twice() -> None:
    own = tuple(
        task_score(task, "acc", share, seed=1, protocol=protocol)
        for task, protocol, share in (
            ("piqa", "0 shots", 0.6), ("boolq", "0 shots", 0.8), ("piqa", "5 shots", 0.7), ("arc", "0 shots", 0.5),
        )
    )  # fmt: skip
    found = section(searched(own, with_tasks("a", *own)))
    assert [[(column.source, column.protocol) for column in columns] for columns in found.sets] == [
        [("piqa", "0 shots"), ("boolq", "0 shots"), ("arc", "0 shots")], [("piqa", "5 shots")],
    ]  # fmt: skip
    assert found.set_titles == ("mean of 3 tasks", "piqa acc, 5 shots")
    lacks_one = with_tasks("b", *own[1:])
    assert section(searched(own, with_tasks("a", *own), lacks_one)).sets == found.sets


def test_no_mean_mixes_shots() -> None:
    """One task of each number of shots: each is shown, and no mean over both."""
    own = tuple(
        task_score(task, "acc", share, seed=1, protocol=f"lm-eval 0.4.13, {shots} shots, all 20 items")
        for task, shots, share in (("mmlu", 5, 0.4), ("piqa", 0, 0.6), ("boolq", 0, 0.8))
    )
    found = section(searched(own, with_tasks("a", *own)))
    assert [[column.source for column in columns] for columns in found.sets] == [["mmlu"], ["piqa", "boolq"]]
    assert found.set_titles == ("mmlu acc", "mean of 2 tasks")


def test_the_published_mean_stands_apart_from_other_tasks() -> None:
    seven = ("boolq", "piqa_local", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
    own = tuple(task_score(task, "acc", 0.5, seed=1) for task in (*seven[:3], "gsm8k", *seven[3:], "mmlu"))
    found = section(searched(own, with_tasks("a", *own)))
    assert [[column.source for column in columns] for columns in found.sets] == [list(seven), ["gsm8k", "mmlu"]]
    assert found.set_titles == ("mean of 7 tasks", "mean of 2 tasks")
    lacks_one = with_tasks("b", *own[1:])
    assert section(searched(own, with_tasks("a", *own), lacks_one)).sets == found.sets
    only = section(searched(own[:4], with_tasks("a", *own[:4])))
    assert only.set_titles == ("mean of 4 tasks",)


def test_a_measure_that_is_no_share_of_items_enters_no_mean() -> None:
    bleu = replace(task_score("wmt", "bleu", 0.5, seed=1), value=27.0, item_values=())
    loss = replace(task_score("lambada", "ppl", 0.5, seed=1), value=0.9, higher_is_better=False)
    piqa, boolq = (task_score(task, "acc", 0.6, seed=1) for task in ("piqa", "boolq"))
    found = section(searched((bleu, loss, piqa, boolq), with_tasks("a", bleu, loss, piqa, boolq)))
    assert [[column.source for column in own] for own in found.sets] == [["piqa", "boolq"]]
    assert len(found.tasks) == 4


def test_speed_up_is_of_the_same_turns_and_the_dense_line_is_the_mean_over_turns() -> None:
    first, second = efficiency(24), efficiency(18)
    slower = replace(
        second,
        points=tuple(
            replace(point, dense=replace(point.dense, latency=2 * point.dense.latency), speed_up=2 * point.speed_up)
            for point in second.points
        ),
    )
    trials = tuple(
        replace(one, after=EvalScores(efficiency=score))
        for one, score in zip(experiment().trials[1:4:2], (first, slower), strict=True)
    )
    view = report_view(replace(experiment(), trials=trials))
    (table,) = efficiency_tables(view.rows)
    dense, *models = table.shapes[0]
    assert dense.point.latency == pytest.approx(1.5 * first.points[0].dense.latency)
    assert (dense.block_share, dense.head_share) == (
        pytest.approx((first.points[0].block_share + second.points[0].block_share) / 2),
        pytest.approx((first.points[0].head_share + second.points[0].head_share) / 2),
    )
    assert [footprint.weight_bytes for _, footprint in table.footprints] == [
        first.dense.weight_bytes, *sorted((first.model.weight_bytes, second.model.weight_bytes), reverse=True),
    ]  # fmt: skip
    by_size = {line.row.plan.size.blocks: line for line in models if line.row}
    assert by_size[24].speed_up == pytest.approx(first.points[0].dense.latency / first.points[0].model.latency)
    assert by_size[18].speed_up == pytest.approx(2 * second.points[0].dense.latency / second.points[0].model.latency)
    assert [(lines[0].point.batch_size, lines[0].point.output_tokens) for lines in table.shapes] == [
        (1, 128), (1, 512), (8, 128), (8, 512), (64, 128), (64, 512),
    ]  # fmt: skip


def test_other_machines_have_tables_and_panels_of_their_own() -> None:
    trials = tuple(
        replace(one, after=replace(one.after, efficiency=efficiency(24, device=device)))
        for one, device in zip(experiment().trials[:2], ("H200", "CPU"), strict=True)
    )
    view = report_view(replace(experiment(), trials=trials))
    assert len(view.efficiency) == 2
    (latency,) = (group for group in view.panel_groups if group.title == "Latency")
    assert {panel.x.protocol.split(",")[0] for panel in latency.panels} == {"H200", "CPU"}
    assert all(len(panel.after) <= 1 for panel in latency.panels)


def test_csv_has_every_new_score_under_its_protocol() -> None:
    view = report_view(everything())
    assert view.tasks is not None
    rows = list(csv.DictReader(io.StringIO(to_csv(view.rows, view.columns, view.dense, view.tasks.sets))))
    best = next(row for row in rows if row["best_of_target"] == "True")
    own = everything().trials[int(best["number"]) - 1].after
    piqa = next(task for task in own.tasks if task.task == "piqa")
    name = f"piqa:{piqa.protocol}"
    assert float(best[f"report_after_acc:{name}"]) == piqa.value
    assert float(best[f"report_after_bits_per_byte:{name}"]) == piqa.bits_per_byte
    difference = float(best[f"report_after_acc:{name}"]) - float(best[f"report_dense_acc:{name}"])
    assert float(best[f"report_difference_acc:{name}"]) == pytest.approx(difference)
    assert 0 <= float(best[f"report_difference_acc_mcnemar_p:{name}"]) <= 1
    assert int(best[f"report_difference_acc_flips:{name}"]) > 0
    kl = next(cell for column, cell in best.items() if column.startswith("report_after_kl:wiki:"))
    assert float(kl) == own.agreement[0].kl
    assert own.efficiency is not None
    shape = f"batch 1, 128 tokens out:{own.efficiency.protocol}"
    assert float(best[f"report_after_latency:{shape}"]) == own.efficiency.points[0].model.latency
    missing = [row["missing_scores"] for row in rows if row["missing_scores"]]
    assert missing == ["task hellaswag: OutOfMemoryError: asked for 3.1 GiB at batch size 1"]
    unmeasured = next(row for row in rows if row["status"] == "waiting")
    assert unmeasured[f"report_after_latency:{shape}"] == unmeasured[f"report_difference_acc:{name}"] == ""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(everything(), tmp_path_factory.mktemp("everything")).parent


def test_the_page_shows_each_kind_of_score_and_what_is_missing(written: Path) -> None:
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    for stated in (
        "This report is partial: 45 of 48 trials finished.", "1 running; 1 waiting; 1 failed; 1 score missing",
        "task hellaswag of #", "OutOfMemoryError: asked for 3.1 GiB", "Difference to the dense model, item by item",
        "Bits per byte", "Agreement and own measures", "measures:rhyme_rate", "KL(dense ‖ model)", "speed-up",
        "6f1d2a90c3b4e587", "s3://bucket/team/models/t00/a1", "rate", "wsd: 4 warm-up steps, 8 decay steps",
    ):  # fmt: skip
        assert stated in page.text, stated


def test_every_table_states_the_protocols_of_its_columns_in_text(written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    full = everything().dense_report
    tasks, texts = ({score.protocol for score in scores} for scores in (full.tasks, full.perplexity))
    for part, protocols in (
        ("tasks", tasks | texts), ("agreement", texts | {full.metrics[0].protocol}), ("methods", texts),
    ):  # fmt: skip
        start = html.index(f'<section id="{part}">')
        said = re.sub(r"<[^>]*>", "", html[start : html.index("</section>", start)])
        assert protocols
        assert all(protocol in said for protocol in protocols), part
    start = html.index('<section id="tasks">')
    tables = html[start : html.index("</section>", start)].split("</table>")
    assert len(tables) == 4
    assert all(protocol in re.sub(r"<[^>]*>", "", after) for after in tables[1:] for protocol in tasks)
    markdown = (written / "report.md").read_text(encoding="utf-8")
    assert all(protocol in markdown[: markdown.index("](pareto.png)")] for protocol in texts)


def test_heat_ranks_within_a_criterion_and_shows_what_each_plan_removes() -> None:
    ppl, greedy = unit_scores("ppl"), partly_scored("greedy_ppl")
    made = plan(ppl.removed(6), ("ppl", 0.2))
    view = report_view(replace(experiment(), trials=(trial("a", made),), unit_scores=(ppl, greedy)))
    first, second = view.heat
    assert len(first.cells) == len(second.cells) == NUM_BLOCKS
    shades = [first.cells[block].shade for block in ppl.order]
    assert shades[0] == 1.0
    assert shades[-1] == 0.0
    assert shades == sorted(shades, reverse=True)
    assert [(plain(name), removed) for name, removed in first.plans] == [("20 %", made.removed_blocks)]
    assert second.plans == ()
    assert second.cells[0].shade is None
    assert "not scored" in second.cells[0].tip
    assert "removal rank 1 of 30" in first.cells[ppl.order[0]].tip
