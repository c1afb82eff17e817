"""Render the report's plots: wide for a page or a paper, and narrow for a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from trainers.results.curves import image_of

# Okabe and Ito's colours without yellow, which is too light for lines, and black, which marks the dense network. Six
# colours and seven markers give 42 different pairs.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = {"marker": ("o", "s", "^", "D", "v", "P", "X"), "linestyle": ("-", "--", "-.", ":")}
DEFAULTS = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E3E3E3",
    "axes.axisbelow": True, "lines.markersize": 6, "errorbar.capsize": 3,
    "text.parse_math": False,  # a run's name may contain dollar signs
    "svg.fonttype": "path", "svg.hashsalt": "rare-gems",
}  # fmt: skip
PANEL = (3.7, 2.9)
LEGEND_LINE = 0.19
"""Inches of a line of the legend; figures have room for two."""


class RenderedPlot(NamedTuple):
    """A plot as SVG with its panels side by side (`wide`) or stacked (`narrow`), and as PNG."""

    wide: str
    narrow: str
    png: bytes


DrawPanel = Callable[[Axes, Any], None]
"""Draws an item into its panel."""


def render(
    draw: DrawPanel, items: Sequence[Any], height: float = PANEL[1], one_legend: bool = True, **sharing: Any
) -> RenderedPlot:
    """Render a plot twice, wide and narrow, so that a page can show the one that fits the screen.

    Args:
        draw: called for every panel of both; it draws the same content each time.
        items: one for each panel, at least one, in reading order.
        height: of a panel, in inches; its width is always `PANEL[0]`.
        one_legend: whether one legend for all panels stands below them.
        sharing: `sharex`, `sharey`: axes that the panels share.

    Returns:
        The plot, without a date or version in its files, so that the same data give the same bytes.
    """
    with matplotlib.rc_context(DEFAULTS):
        wide, narrow = (_figure(draw, items, columns, height, sharing) for columns in (2, 1))
        if one_legend:
            legend(wide)
            legend(narrow)
        undated = {"Date": None, "Creator": None}
        svgs = (image_of(figure, "svg", metadata=undated).decode() for figure in (wide, narrow))
        return RenderedPlot(*svgs, image_of(wide, "png", dpi=200, metadata={"Software": None}))


def _figure(draw: DrawPanel, items: Sequence[Any], columns: int, height: float, sharing: Mapping[str, Any]) -> Figure:
    rows = math.ceil(len(items) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, rows * height + 0.4), layout="constrained")
    grid = figure.subplots(rows, min(columns, len(items)), squeeze=False, **sharing).flatten()
    for axes in grid[len(items) :]:  # cells that stay empty
        axes.set_visible(False)
    for axes, item in zip(grid, items):
        draw(axes, item)
    return figure


# ---- parts that plots share ----------------------------------------------------------------------------------------


def styles(names: Sequence[Any], kind: Literal["marker", "linestyle"]) -> dict[Any, dict[str, Any]]:
    """Assign a colour and a marker or line style to every name."""
    looks = zip(names, cycle(COLORS), cycle(STYLES[kind]))
    return {name: {"color": color, kind: look} for name, color, look in looks}


def legend(figure: Figure) -> None:
    """Add one legend for all panels, below them, where it covers nothing; a long one makes the figure higher."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    if "chance" in entries:  # listed after the networks
        entries["chance"] = entries.pop("chance")
    if entries:
        longest = max(map(len, entries))
        columns = max(1, min(len(entries), int(figure.get_figwidth() * 13 / (longest + 7))))
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, math.ceil(len(entries) / columns) - 2))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def label(name: str) -> str:
    """Prepare a name for a legend: shorten it, and keep matplotlib from hiding a leading underscore."""
    short = name if len(name) <= 44 else f"{name[:43]}…"
    return f" {short}" if short.startswith("_") else short


def log_axis(axis: Any, about: str, write: Callable[[float], str] = "{:g}".format) -> None:
    """Make an axis logarithmic, with plain numbers; call this when everything is drawn.

    Args:
        axis: an `xaxis` or `yaxis`.
        about: its label.
        write: number -> text.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}label": about})
    low, high = sorted(axis.get_view_interval())
    few = high / low < 12  # about a decade or less: 1, 2 and 5 alone would be two or three ticks
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5)))
    if high / low < 1.3:  # nearly a single value
        axis.set_major_locator(FixedLocator([math.sqrt(low * high)]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(NullLocator())


def points(axes: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: str, **look: Any) -> None:
    """Draw averages joined by a line, in the order of the rows, with standard deviations where there are any.

    Args:
        axes: to draw into.
        rows: with `x`_mean, `x`_sd, `y`_mean, `y`_sd; those without a mean are left out.
        x, y: names of what to draw.
        look: colour, marker, label.
    """
    rows = [row for row in rows if row[f"{x}_mean"] is not None and row[f"{y}_mean"] is not None]
    if rows:
        bars = {
            f"{axis}err": [row[f"{name}_sd"] or math.nan for row in rows]
            for axis, name in (("x", x), ("y", y))
            if any(row[f"{name}_sd"] for row in rows)
        }
        xs, ys = ([row[f"{name}_mean"] for row in rows] for name in (x, y))
        axes.errorbar(
            xs, ys, **bars, elinewidth=0.9, linewidth=1.1, markeredgecolor="white", markeredgewidth=0.5, **look
        )
