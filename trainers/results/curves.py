"""Plots of a run by matplotlib, without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from trainers.results.screens import before_training
from utils.files import write_atomic

# Okabe and Ito's colours, which colour-blind readers can distinguish.
TEST, TRAIN, WEIGHTS = "#0072B2", "#999999", "#D55E00"


def curves(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Figure:
    """Plot accuracy (above) and weights remaining (below) by epoch, search and fine-tuning in one line.

    Args:
        rows: of the table, in order; each has `phase`, and `test_acc`, `train_acc`, `model_sparsity` in percent.
        summary: the run's; for the title.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    epochs = range(1, len(rows) + 1)
    alone = {"marker": "o"} if len(rows) == 1 else {}  # a line of one point does not show
    above.plot(epochs, [row["test_acc"] for row in rows], color=TEST, label="test", **alone)
    above.plot(epochs, [row["train_acc"] for row in rows], color=TRAIN, linewidth=1, label="train", **alone)
    above.set(ylabel="accuracy (%)", ylim=(0, 101), title=_title(summary))
    below.plot(epochs, [row["model_sparsity"] for row in rows], color=WEIGHTS, drawstyle="steps-mid", **alone)
    below.set(ylabel="weights remaining (%)", yscale="log", xlabel="epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    below.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    below.yaxis.set_minor_locator(NullLocator())
    searched = sum(row["phase"].startswith("search") for row in rows)
    if 0 < searched < len(rows):
        for axes in (above, below):
            axes.axvline(searched + 0.5, color="black", linewidth=0.8, linestyle=":")
        above.annotate(
            "search | fine-tuning", (searched + 0.5, 8), ha="center", fontsize=8, bbox={"fc": "white", "ec": "none"},
            zorder=1,  # behind the curves: those of a search at chance pass there
        )  # fmt: skip
    above.legend(loc="lower right", frameon=False)
    return figure


def write_png(path: Path, figure: Figure) -> None:
    """Write a plot to a PNG file atomically (see `write_atomic`)."""
    write_atomic(path, image_of(figure, "png", dpi=150))


def image_of(figure: Figure, form: str, **options: Any) -> bytes:
    """Return a plot as an image file: `form` is `png` or `svg`, and `options` are those of `Figure.savefig`."""
    image = io.BytesIO()
    figure.savefig(image, format=form, **options)
    return image.getvalue()


def _title(summary: Mapping[str, Any]) -> str:
    kept = "{arch} on {dataset}: {weights_remaining:,} of {weights_total:,} weights".format(**summary)
    after = summary["test_acc_after_finetune"]
    trained = "" if after is None else f", {after:.1f}% after fine-tuning"
    return f"{kept}\n{summary['test_acc_before_finetune']:.1f}% {before_training(summary)}{trained}"
