"""Draw the report's plots of a task from the rows of its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from trainers.reporting.gather import FINISHED
from trainers.reporting.plots import PANEL, RenderedPlot, label, log_axis, points, render, styles
from trainers.reporting.series import Experiment, Series, Task, grouped
from trainers.reporting.tables import Row, prefixed
from trainers.results.trials import Spread

Drawing = Callable[[Task, Sequence[Row]], RenderedPlot | None]
"""Draws the plot of a task and of the rows of its table, at least one; None: there is nothing to draw."""
DENSE = {"color": "black", "linestyle": "--", "linewidth": 1.2}
SAME_DENSITY = 1.15
"""Densities up to this ratio apart share a panel in the plot of layers."""
MOST_TICKS, TOUCHING = 8, 1.2
BESIDE = 1.06
"""Ratio over which points of one density are spread, so that their error bars do not overlap."""


def percent(density: float) -> str:
    """Format a density as the label of a line or a point."""
    return f"{density:.3g}%" if density >= 10 or density < 0.1 else f"{density:.2f}".rstrip("0").rstrip(".") + "%"


def _on_log_axis(rows: Iterable[Row], key: str) -> list[Row]:
    """Keep the rows with a positive value; a random mask may have kept no weight at all."""
    return [row for row in rows if row[key] > 0]


def draw_accuracy(task: Task, rows: Sequence[Row]) -> RenderedPlot | None:
    """Plot accuracy against weights remaining, before and after fine-tuning, with the dense network and chance."""
    dense = {one.name for one in task.dense}
    ticket_rows = [row for row in rows if row["series"] not in dense and row["n"]]
    tickets = _on_log_axis(ticket_rows, "weights_remaining_percent_mean")
    if not tickets:
        return None
    series, look = grouped(tickets, itemgetter("series")), styles([one.name for one in task.tickets], "marker")
    ticks: list[float] = []  # at the points, unless their labels would touch
    for density in sorted({row["weights_remaining_percent_mean"] for row in tickets}):
        if not ticks or density / ticks[-1] > TOUCHING:
            ticks.append(density)

    def draw(axes: Axes, key: str) -> None:
        density = "gem_percent" if key == "before" else "weights_remaining_percent"
        mean = f"{density}_mean"
        for index, (name, members) in enumerate(series.items()):
            beside = BESIDE ** ((index - (len(series) - 1) / 2) / len(series))
            shown = [{**row, mean: row[mean] * beside} for row in _on_log_axis(members, mean)]
            points(axes, shown, density, key, label=label(name), **look[name])
        if key == "after":
            _dense_lines(axes, [row for row in rows if row["series"] in dense])
        elif task.chance:  # after training it would lie far below and squeeze all else
            axes.axhline(task.chance, color="#777777", linestyle=":", linewidth=1, label="chance")
        log_axis(axes.xaxis, "weights remaining (%)", lambda value: percent(value)[:-1])
        if len(ticks) <= MOST_TICKS:
            axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.set(ylabel="test accuracy (%)", title=f"{key} fine-tuning")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_inverted(True)  # as usual, sparser to the right

    return render(draw, ("before", "after"), sharex=True)


def _dense_lines(axes: Axes, rows: Sequence[Row]) -> None:
    for index, row in enumerate(row for row in rows if row["after_mean"] is not None):
        stroke = DENSE | {"linestyle": ("--", "-.", (0, (1, 1)))[index % 3]}
        axes.axhline(row["after_mean"], **stroke, label=label(row["series"]))
        if row["after_sd"]:
            axes.axhspan(
                row["after_mean"] - row["after_sd"], row["after_mean"] + row["after_sd"], color="#00000018", lw=0
            )


def draw_checks(_task: Task, rows: Sequence[Row]) -> RenderedPlot:
    """Plot every ticket's accuracy, with the accuracies of its checks on lines below it."""
    # Trials of one ticket that ran different checks are apart: each check stands below the trials that ran it.
    tickets = grouped(rows, itemgetter("series", "weights_remaining_percent", "n", "ticket_mean", "config_hash"))
    checks = list(dict.fromkeys(row["check"] for row in rows))
    look = styles(["ticket", *checks], "marker")

    def draw(axes: Axes, tickets: Mapping[Any, Sequence[Row]]) -> None:
        for place, members in enumerate(tickets.values()):
            _dot(axes, members[0], "ticket", place, {**look["ticket"], "label": "ticket"})
            for row in members:
                offset = 0.17 * (checks.index(row["check"]) + 1)
                _dot(axes, row, "check_accuracy", place + offset, {**look[row["check"]], "label": row["check"]})
        names = [f"{label(name)}\n{percent(density)}, n = {n}" for name, density, n, *_ in tickets]
        axes.set_yticks([place + 0.25 for place in range(len(names))], names)
        axes.set_ylim(len(names) - 0.15, -0.4)
        axes.set(xlabel="test accuracy after fine-tuning (%)")
        axes.grid(axis="y", visible=False)
        for place in range(1, len(names)):
            axes.axhline(place - 0.28, color="#BBBBBB", linewidth=0.6)

    return render(draw, [tickets], height=0.7 + 0.5 * len(tickets))


def _dot(axes: Axes, row: Row, key: str, place: float, look: Mapping[str, Any]) -> None:
    if row[f"{key}_mean"] is not None:
        axes.errorbar(row[f"{key}_mean"], place, xerr=row[f"{key}_sd"], linestyle="none", elinewidth=0.9,
                      capsize=2, **look)  # fmt: skip


def draw_layers(task: Task, rows: Sequence[Row]) -> RenderedPlot | None:
    """Plot the density of every layer, with one panel per density of the whole network."""
    groups: list[list[Row]] = []
    for row in sorted(
        _on_log_axis(rows, "weights_remaining_percent"), key=lambda row: -row["weights_remaining_percent"]
    ):
        alike = groups and groups[-1][0]["weights_remaining_percent"] / row["weights_remaining_percent"] <= SAME_DENSITY
        groups[-1].append(row) if alike else groups.append([row])
    if not groups:
        return None
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    look = styles([one.name for one in task.tickets], "marker")
    floor = 0.5 * min((row["density_percent_mean"] for row in rows if row["density_percent_mean"]), default=1.0)

    def draw(axes: Axes, group: Sequence[Row]) -> None:
        # A line for each experiment: two densities of a series may share a panel.
        lines = grouped(group, itemgetter("series", "config_hash"))
        for name, members in ((name, lines[key]) for name in look for key in lines if key[0] == name):
            # A log axis cannot show a layer without weights: it gets a hollow marker at the bottom.
            at = [layers.index(row["layer"]) for row in members]
            heights = [max(row["density_percent_mean"], floor) for row in members]
            (line,) = axes.plot(at, heights, label=label(name), linewidth=0.9, **look[name])
            dead = [(x, floor) for x, row in zip(at, members) if not row["density_percent_mean"]]
            axes.plot(*zip(*dead), "o", mfc="white", mec=line.get_color(), ms=6) if dead else None
        log_axis(axes.yaxis, "weights remaining (%)")
        axes.tick_params(labelleft=True)
        axes.set_title(f"about {percent(group[0]['weights_remaining_percent'])} of all weights")
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6.5 if len(layers) <= 24 else 4)

    return render(draw, groups, PANEL[1] + 0.3, sharey=True)


STEERED = {"lmbda": "λ", "threshold": "threshold of the rounding"}
"""Columns of the table of epochs that a search may change by itself, with the label of their axis."""


def draw_curves(task: Task, _rows: Sequence[Row]) -> RenderedPlot | None:
    """Plot test accuracy by epoch, one panel per series: the average of finished trials, and each unfinished run.

    What a search steers by itself has a panel of its own (see `STEERED`).
    """
    epochs = {one.name: [epoch for other in one.experiments for run in other.runs for epoch in run.epochs]
              for one in task.series}  # fmt: skip
    shown = [(one, "test_acc") for one in task.series if epochs[one.name]]
    shown += [(one, metric) for one in task.series for metric in STEERED
              if len({getattr(epoch, metric) for epoch in epochs[one.name]} - {None}) > 1]  # fmt: skip
    if not shown:
        return None

    def draw(axes: Axes, item: tuple[Series, str]) -> None:
        series, metric = item
        look = styles([one.config_hash for one in series.experiments], "linestyle")
        for one in series.experiments:
            _curve(axes, one, metric, look[one.config_hash])
        axes.set_title(label(series.name))
        if metric == "test_acc":
            axes.set(xlabel="epoch, search and fine-tuning", ylabel="test accuracy (%)", ylim=(0, 103))
        else:
            axes.set(xlabel="epoch of the search", ylabel=STEERED[metric])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False, fontsize=7.5)

    return render(draw, shown, PANEL[1] + 0.3, one_legend=False)


def _curve(axes: Axes, one: Experiment, metric: str, look: Mapping[str, Any]) -> None:
    """Draw a metric over the epochs that have it."""
    courses = [(run, {(epoch.phase, epoch.epoch): value for epoch in run.epochs
                      if (value := getattr(epoch, metric)) is not None}) for run in one.runs]  # fmt: skip
    ended = [course for run, course in courses if run.state == FINISHED and course]
    if ended:
        phases = list(dict.fromkeys(phase for course in ended for phase, _ in course))
        points = sorted({point for course in ended for point in course}, key=lambda at: (phases.index(at[0]), at[1]))
        spreads = [Spread.of(course.get(point) for course in ended) for point in points]
        epochs = range(1, len(spreads) + 1)
        alone = {"marker": "o"} if len(spreads) == 1 else {}  # a line of one point does not show
        axes.plot(epochs, [one.mean for one in spreads], label=percent(one.density), linewidth=1.2, **look, **alone)
        searched = sum(phase.startswith("search") for phase, _ in points)
        if 0 < searched < len(spreads):
            axes.plot(searched + 0.5, fmean((spreads[searched - 1].mean, spreads[searched].mean)), "|", ms=13,
                      color=look["color"])  # fmt: skip
        low, high = ([one.mean + sign * (one.sd or 0.0) for one in spreads] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
    aim = "" if one.target is None else f"{one.target:g}%, "
    for run, course in courses:
        if run.state != FINISHED and course:
            values = list(course.values())
            axes.plot(range(1, len(values) + 1), values, linewidth=0.8, **look)
            axes.plot(len(values), values[-1], ">", mfc="white", mec=look["color"], ms=7,
                      label=f"{aim}trial {run.trial}, {run.state}")  # fmt: skip


def draw_costs(task: Task, rows: Sequence[Row]) -> RenderedPlot | None:
    """Plot accuracy after fine-tuning against its costs."""
    rows = [row for row in rows if row["after_mean"] is not None]
    if not rows:
        return None
    look = styles([one.name for one in task.tickets], "marker")
    look |= {one.name: {"color": "black", "marker": "*", "markersize": 9} for one in task.dense}
    kinds = {"flops_dense": "training FLOPs, dense", "flops_masked": "training FLOPs, masked", "epochs": "epochs",
             "seconds": "seconds"}  # fmt: skip

    def draw(axes: Axes, key: str) -> None:
        for name, members in grouped(rows, itemgetter("series")).items():
            points(axes, members, key, "after", label=label(name), **look[name])
            if name not in {one.name for one in task.dense}:
                _written(axes, members, f"{key}_mean")
        log_axis(axes.xaxis, kinds[key], prefixed)
        axes.set(ylabel="test accuracy (%)")
        axes.tick_params(labelleft=True)

    return render(draw, list(kinds), sharey=True)


def _written(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """Write the density beside the first and the last point of a line."""
    for row in {id(row): row for row in (rows[0], rows[-1])}.values():
        axes.annotate(percent(row["weights_remaining_percent_mean"]), (row[key], row["after_mean"]), xytext=(5, -9),
                      textcoords="offset points", fontsize=6.5)  # fmt: skip
