"""The figures of a report: plots put together from a view, as PNG or as SVG for the page."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from shortened_llm.reporting.pareto import ParetoPanel
from shortened_llm.reporting.plots import Value, curve_names, curves, draw_losses, draw_pareto, draw_recovery
from shortened_llm.reporting.score_plot import draw_scores, figure_width
from shortened_llm.reporting.style import INK, drawing, new_figure, save_png, to_svg
from shortened_llm.reporting.view import ReportView

if TYPE_CHECKING:
    from matplotlib.lines import Line2D


def write_pareto_png(view: ReportView, path: Path) -> None:
    """All panels in one picture, each headed with its text and protocol."""
    with drawing("png"):
        panels = [panel for group in view.panel_groups for panel in group.panels]
        columns = min(2, max(1, len(panels)))
        lines = max(1, -(-len(panels) // columns))
        figure = new_figure(5.2 * columns, 3.9 * lines + 0.5)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if not panels:
            grid[0].text(0.5, 0.5, "No perplexity was measured.", ha="center", transform=grid[0].transAxes)
        for axes, panel in zip(grid, panels, strict=False):
            draw_pareto(axes, panel, view.styles, view.greyed)
            protocol = textwrap.shorten(panel.y.protocol, 130, placeholder=" …")
            axes.set_title(f"{panel.y.title}\n{textwrap.fill(protocol, 70)}", fontsize=8)
        legend = _legend(view)
        figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=4, fontsize=8)
        save_png(figure, path)


def _legend(view: ReportView) -> dict[str, "Line2D"]:
    from matplotlib.lines import Line2D

    legend = {
        "dense": Line2D([], [], linestyle="none", marker="*", markersize=10, color=INK),
        "before retraining": Line2D([], [], linestyle="none", marker="o", mfc="none", color=INK),
        "after retraining": Line2D([], [], linestyle="none", marker="o", color=INK),
        "Pareto-optimal": Line2D([], [], linewidth=1, color=INK),
    }
    if view.has_controls:
        legend["control, retrained"] = Line2D([], [], linestyle="none", marker="x", color=INK)
    for names, style in view.styles.items():
        legend[" + ".join(names)] = Line2D([], [], linestyle="none", marker=style.marker, color=style.colour)
    return legend


def pareto_svgs(view: ReportView) -> list[list[str]]:
    """One `<svg>` per panel of each group of the view."""
    return [
        [_pareto_svg(panel, view, f"pareto{group}-{index}") for index, panel in enumerate(panels.panels)]
        for group, panels in enumerate(view.panel_groups)
    ]


def _pareto_svg(panel: ParetoPanel, view: ReportView, salt: str) -> str:
    with drawing(salt):
        figure = new_figure(4.9, 3.5)
        tips = draw_pareto(figure.subplots(), panel, view.styles, view.greyed)
        title = f"{panel.y.title} against {panel.x.title}"
        return to_svg(figure, title[0].upper() + title[1:], tips)


def score_svgs(view: ReportView) -> list[str]:
    """One `<svg>` per criterion: its scores by block."""
    svgs = []
    for index, scores in enumerate(view.experiment.unit_scores):
        colour = view.styles[(scores.ranking,)].colour
        with drawing(f"scores{index}"):
            figure = new_figure(figure_width(len(scores.scores)), 2.2)
            tips = draw_scores(figure.subplots(), scores, colour)
            svgs.append(to_svg(figure, f"{scores.ranking} score by block", tips))
    return svgs


def curves_svg(view: ReportView, value: Value, label: str) -> str | None:
    """A loss of all trials against tokens; None where no trial has it."""
    if not any(curves(row.runs, value) for row in view.rows):
        return None
    with drawing(label.replace(" ", "-")):
        figure = new_figure(7.6, 3.8)
        tips = draw_losses(figure.subplots(), view.rows, view.styles, value, label)
        return to_svg(figure, f"{label.capitalize()} against tokens", tips)


def recovery_svgs(view: ReportView) -> list[str]:
    """One `<svg>` per target of a race; empty where nothing of it was trained yet."""
    svgs = []
    for index, recovery in enumerate(view.recoveries):
        if not any(row.tokens and row.selection_nll for one in recovery.race.candidates for row in one.rows):
            svgs.append("")
            continue
        with drawing(f"recovery{index}"):
            figure = new_figure(4.9, 3.5)
            tips = draw_recovery(figure.subplots(), recovery, view.styles, view.greyed)
            svgs.append(to_svg(figure, f"Loss against tokens, {recovery.race.name}", tips))
    return svgs


def curve_legend(view: ReportView) -> list[tuple[str, str]]:
    """(name, colour) of the curves that are drawn, controls last."""
    names = curve_names(view.rows, view.styles)
    drawn = {names[row.number]: row.is_control for row in view.rows if curves(row.runs, lambda point: point.loss)}
    return sorted(drawn, key=lambda name: drawn[name])
