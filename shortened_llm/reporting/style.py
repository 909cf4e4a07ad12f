"""Style of the figures, and their two forms: PNG for Markdown, SVG to stand inside an HTML page."""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#6b7075"
"""Axes and text: legible on white and on black; in an SVG it becomes the page's text colour."""

# Contrast of at least 3 with white and with near-black; shapes repeat with another period than colours.
COLOURS = ("#3b82c4", "#d0652a", "#2a9571", "#b05fb0", "#a58212", "#7b6fd6")
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesStyle:
    """How the trials of one set of criteria are drawn."""

    colour: str
    marker: str
    """matplotlib's name of the shape."""
    glyph: str
    """The shape as text, for legends."""


def series_styles(names: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], SeriesStyle]:
    """One style per set of criteria, the same in every figure of a report."""
    return {
        name: SeriesStyle(colour=COLOURS[index % len(COLOURS)], marker=marker, glyph=glyph)
        for index, name in enumerate(names)
        for marker, glyph in [MARKERS[index % len(MARKERS)]]
    }


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Draw with the report's style whatever the user's matplotlib is set to. `salt` keeps SVG ids apart in one page."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": salt,
                # Names come from the user's files and may hold a dollar sign.
                "text.parse_math": False,
                "font.size": 9,
                "axes.edgecolor": INK,
                "axes.labelcolor": INK,
                "axes.linewidth": 0.7,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "text.color": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "xtick.major.width": 0.7,
                "ytick.major.width": 0.7,
                "legend.frameon": False,
            }
        )
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, outside matplotlib's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_ticks(axes: "Axes", *, log_y: bool) -> None:
    """Tick labels as plain numbers, and a log scale where asked: ticks at 1, 2, 5, or at powers of ten where many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
    axes.set_axisbelow(True)


def save_png(figure: "Figure", path: Path) -> None:
    """Write on white, without the library's version in the file, so that equal records give equal bytes."""
    figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})


def to_svg(figure: "Figure", label: str, tips: Mapping[str, str]) -> str:
    """An `<svg>` element for a page: transparent, sized by its container, in the page's ink.

    Args:
        label: what a screen reader says.
        tips: gid of an artist -> what the pointer shows over it.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    # An XML prologue does not belong inside a page, and matplotlib's style would apply to all of it.
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="[^"]*"', svg)
    assert viewbox is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {viewbox[0]} role="img" aria-label="{html.escape(label)}">', svg, count=1)

    def group(match: re.Match[str]) -> str:
        tip = tips.get(match[1])
        # Only tips need a name: matplotlib's group ids repeat in every figure.
        return "<g>" if tip is None else f"<g><title>{html.escape(tip)}</title>"

    svg = re.sub(r'<g id="([^"]*)">', group, svg)
    return svg.replace("xlink:href", "href").replace(INK, "currentColor").strip()
