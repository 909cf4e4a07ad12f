"""The page and the Markdown, rendered from templates."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shortened_llm.records import RESAMPLES, UNDECIDED, unit_name
from shortened_llm.reporting import formats
from shortened_llm.reporting.columns import protocol_notes
from shortened_llm.reporting.figures import curve_legend, curves_svg, pareto_svgs, recovery_svgs, score_svgs
from shortened_llm.reporting.missing import missing_scores
from shortened_llm.reporting.notes import score_notes
from shortened_llm.reporting.paired import LEAST_DIFFERENCE, LEAST_SEEDS, LEAST_SIGNIFICANCE, LEAST_STANDARD_ERRORS
from shortened_llm.reporting.plots import LINE_NAMES, line_styles
from shortened_llm.reporting.score_plot import MANY_BLOCKS
from shortened_llm.reporting.view import ReportView


def render_html(view: ReportView, downloads: Mapping[str, str]) -> str:
    """The page, figures included.

    Args:
        downloads: name -> text of the files that the page offers.
    """
    loss = curves_svg(view, lambda point: point.loss, "training loss")
    validation = curves_svg(view, lambda point: point.validation_loss, "validation loss")
    # matplotlib escapes the names inside a figure as it writes XML.
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            view=view,
            pareto_svgs=[[Markup(svg) for svg in svgs] for svgs in pareto_svgs(view)],
            downloads=in_script(downloads),
            recovery_svgs=[Markup(svg) for svg in recovery_svgs(view)],
            score_svgs=[Markup(svg) for svg in score_svgs(view)],
            loss_svg=Markup(loss) if loss else None,
            validation_svg=Markup(validation) if validation else None,
            curve_legend=curve_legend(view),
            line_names={size: LINE_NAMES[style] for size, style in line_styles(view.rows).items()},
        )
    )


def render_markdown(view: ReportView) -> str:
    """The Markdown, which shows `pareto.png` beside it."""
    return environment().get_template("report.md.j2").render(view=view)


def in_script(value: object) -> Markup:
    """JSON that may stand in a script element, whatever names it holds."""
    return Markup(json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def markdown_text(value: str) -> str:
    """Text that stays text, on one line of a paragraph or in a table cell."""
    return re.sub(r"([\\`*_\[\]|<>#~$])", r"\\\1", " ".join(value.split()))


def markdown_code(value: str) -> str:
    """A code span that may stand in a table cell."""
    return "`" + " ".join(value.split()).replace("`", "'").replace("|", "\\|") + "`"


@functools.cache
def environment() -> Environment:
    """What every template has: filters, the names that all of them use, and escaping for HTML alone."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for written in (
        formats.perplexity, formats.accuracy, formats.nll, formats.significant, formats.compact, formats.parameters,
        formats.count, formats.percent, formats.seconds, formats.hours, formats.learning_rates,
        formats.removed, formats.removed_count, formats.protected,
        formats.difference, formats.times, formats.p_value, formats.gib, formats.learning_rate,
        formats.ratio, formats.share, formats.first_line, markdown_text, markdown_code,
    ):  # fmt: skip
        templates.filters[written.__name__] = written
    templates.filters["json"] = json.dumps
    templates.filters["unit_name"] = lambda number, unit: unit_name(unit, number)
    templates.globals |= {
        "MISSING": formats.MISSING,
        "MARK": formats.UNDECIDED,
        "UNDECIDED": UNDECIDED,
        "RESAMPLES": RESAMPLES,
        "LEAST_DIFFERENCE": LEAST_DIFFERENCE,
        "LEAST_STANDARD_ERRORS": LEAST_STANDARD_ERRORS,
        "LEAST_SEEDS": LEAST_SEEDS,
        "LEAST_SIGNIFICANCE": LEAST_SIGNIFICANCE,
        "protocol_notes": protocol_notes,
        "missing_scores": missing_scores,
        "score_notes": score_notes,
        "MANY_BLOCKS": MANY_BLOCKS,
    }
    return templates
