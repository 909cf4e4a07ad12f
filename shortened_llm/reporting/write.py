"""Writes the report of an experiment into a local directory."""

import re
from dataclasses import replace
from pathlib import Path

from shortened_llm.records import EvalScores, Experiment, TrialResult, to_json
from shortened_llm.reporting.figures import write_pareto_png
from shortened_llm.reporting.flat import to_csv
from shortened_llm.reporting.templates import render_html, render_markdown
from shortened_llm.reporting.view import report_view


def write_report(experiment: Experiment, directory: Path) -> Path:
    """Write `report.html`, `report.md`, `trials.csv`, `trials.json` and `pareto.png`; return the path of the first.

    The page needs no other file. Equal records give equal bytes.

    Args:
        directory: created where it does not exist; files of these names are replaced.

    Raises:
        OSError: where the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    view = report_view(experiment)
    table = to_csv(view.rows, view.columns, view.dense, view.tasks.sets if view.tasks else ())
    downloads = {"trials.csv": table, "trials.json": to_json(without_lists(experiment), indent=None)}
    texts = {
        "trials.json": _numbers_on_one_line(to_json(experiment)),
        "trials.csv": table,
        "report.md": render_markdown(view),
        "report.html": render_html(view, downloads),
    }
    write_pareto_png(view, directory / "pareto.png")
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    return directory / "report.html"


def without_lists(experiment: Experiment) -> Experiment:
    """The experiment without numbers by document and item and without training histories, which make a page heavy."""

    def scores(of: EvalScores) -> EvalScores:
        texts = tuple(replace(text, document_nll=(), document_predictions=()) for text in of.perplexity)
        tasks = tuple(replace(task, item_values=(), item_answers=(), item_bits_per_byte=()) for task in of.tasks)
        return replace(of, perplexity=texts, tasks=tasks)

    def result(of: TrialResult | None) -> TrialResult | None:
        if of is None:
            return None
        runs = tuple(replace(run, history=()) for run in of.runs)
        return replace(of, runs=runs, before=scores(of.before), after=scores(of.after))

    trials = tuple(
        replace(trial, result=result(trial.result), before=scores(trial.before), after=scores(trial.after))
        for trial in experiment.trials
    )
    return replace(
        experiment,
        trials=trials,
        dense_selection=scores(experiment.dense_selection),
        dense_report=scores(experiment.dense_report),
    )


def _numbers_on_one_line(text: str) -> str:
    """Indented JSON whose lists of numbers take one line each: scores by document have thousands.

    A JSON string holds no line break, so what is matched is never part of one.
    """
    return re.sub(
        r"\[\n\s*([-+.\deE]+(?:,\n\s*[-+.\deE]+)*)\n\s*\]", lambda match: f"[{' '.join(match[1].split())}]", text
    )
