"""Writes the report of an experiment into a local directory."""

import re
from pathlib import Path

from shortened_llm.records import Experiment, to_json
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
    texts = {
        "trials.json": _numbers_on_one_line(to_json(experiment)),
        "trials.csv": to_csv(view.rows, view.columns, view.dense),
        "report.md": render_markdown(view),
        "report.html": render_html(view),
    }
    write_pareto_png(view, directory / "pareto.png")
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
    return directory / "report.html"


def _numbers_on_one_line(text: str) -> str:
    """Indented JSON whose lists of numbers take one line each: scores by document have thousands.

    A JSON string holds no line break, so what is matched is never part of one.
    """
    return re.sub(
        r"\[\n\s*([-+.\deE]+(?:,\n\s*[-+.\deE]+)*)\n\s*\]", lambda match: f"[{' '.join(match[1].split())}]", text
    )
