"""The contents of the report's tables for one task (a data set and a network)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainers.reporting.gather import FINISHED, RunRecord
from trainers.reporting.published import AFTER, BEFORE, SOURCE, beside_published, published_for
from trainers.reporting.series import Experiment, Task
from trainers.reporting.tables import NONE, Column, Row, Table, number, spread, text
from trainers.results.trials import Spread, dense_references
from utils.files import as_csv

HASH = Column("config", lambda row: row["config_hash"] or NONE, links=lambda row: row["links"]["config"])
RUNS = Column("runs (trial)", lambda row: row["runs"] or NONE, links=lambda row: row["links"]["runs"])
METRICS = {BEFORE: "before fine-tuning", AFTER: "after fine-tuning"}


class Contents:
    """The tables of one task; a row is an experiment, or a check, layer or run of one.

    Rows have raw numbers, which the CSV files get; the columns say how the page shows them.

    Args:
        task: to tabulate.
        home: the folder of the report; links are relative to it.
    """

    def __init__(self, task: Task, home: Path) -> None:
        self._task, self._home = task, home
        self._experiments = [(series, one) for series in task.series for one in series.experiments]
        self._tickets = [(series, one) for series, one in self._experiments if not series.is_dense]

    def accuracy(self) -> Table:
        """Accuracy and weights remaining of every experiment."""
        rows = []
        for series, one in self._experiments:
            row = {"series": series.name, "algo": series.algo, "target_percent": one.target}
            row |= one.spread("weights_remaining_percent").columns("weights_remaining_percent")
            row |= one.spread("gem_percent").columns("gem_percent")
            row |= one.spread("effective_weights_remaining_percent").columns("effective_percent")
            row |= one.spread(BEFORE).columns("before") | one.spread(AFTER).columns("after")
            references = dense_references(other.model_dump() for other in one.outcomes)
            below = Spread.of(dense["gap"] for dense in references)
            row |= below.columns("below_dense") | {"below_dense_n": below.n}
            row |= {"dense_trained_alike": all(dense["trained_alike"] for dense in references)}
            row |= {"n": len(one.outcomes), "unfinished": len(one.runs) - len(one.outcomes)}
            rows.append(row | self._traced(one))
        below_dense = spread("below dense (points)", "below_dense")
        columns = (
            text("series", "series"), number("asked for (%)", "target_percent", "g"),
            spread("weights remaining (%)", "weights_remaining_percent"),
            spread("effective (%)", "effective_percent"), spread("gem (%)", "gem_percent"),
            spread("before fine-tuning (%)", "before"), spread("after fine-tuning (%)", "after"),
            replace(below_dense, show=lambda row: below_dense.show(row) + " *" * (not row["dense_trained_alike"])),
            number("n", "n", "d"),
            number("unfinished", "unfinished", "d"), HASH, RUNS,
        )  # fmt: skip
        caption = (
            "Test accuracy and weights remaining: mean ± sample standard deviation over the n finished trials of an "
            "experiment. Gem: the weights of the network measured before fine-tuning. Below dense: the dense run of "
            "the same data, network and trial, minus the ticket; * none of them was trained as the tickets were."
        )
        return Table(caption, columns, rows)

    def checks(self) -> Table:
        """Every sanity check, compared to its ticket."""
        rows = []
        for series, one in self._tickets:
            for check, verdict in one.verdicts.items():
                row = {"series": series.name, "weights_remaining_percent": one.density, "check": check}
                ticket, controls = one.beside(check)
                row |= ticket.columns("ticket") | controls.columns("check_accuracy")
                row |= {"margin": verdict.margin, "low": verdict.low, "high": verdict.high}
                rows.append(row | {"verdict": verdict.word, "n": verdict.trials} | self._traced(one))
        interval = Column("95% interval", _interval, lambda row: row["low"])
        columns = (
            text("series", "series"), number("weights remaining (%)", "weights_remaining_percent"),
            text("check", "check"), spread("ticket (%)", "ticket"), spread("check (%)", "check_accuracy"),
            number("ticket − check (points)", "margin", "+.2f"), interval, text("verdict", "verdict"),
            number("n", "n", "d"), HASH,
        )  # fmt: skip
        caption = (
            "Test accuracy after fine-tuning, of tickets and of their checks, which were trained alike. A check is "
            "passed when the 95% interval of (ticket − check), by a paired t-test over n trials, lies above 0; with "
            "fewer than 3 trials, or trials that are copies of one another, it is undecided."
        )
        return Table(caption, columns, rows)

    def layers(self) -> Table:
        """The density of every layer of every ticket."""
        rows = []
        for series, one in self._tickets:
            for layer, density in one.layers.items():
                row = {"series": series.name, "weights_remaining_percent": one.density, "layer": layer}
                rows.append(row | density.columns("density_percent") | {"n": density.n} | self._traced(one))
        columns = (
            text("series", "series"), number("weights remaining (%)", "weights_remaining_percent"),
            text("layer", "layer"), spread("density of the layer (%)", "density_percent"), number("n", "n", "d"), HASH,
        )  # fmt: skip
        caption = "Weights remaining in each layer, in percent of the layer's: mean ± standard deviation over trials."
        return Table(caption, columns, rows)

    def curves(self) -> Table:
        """The last epoch of every run."""
        rows = []
        for series, one in self._experiments:
            for run in one.runs:
                last = run.epochs[-1] if run.epochs else None
                row = {"series": series.name, "target_percent": one.target, "trial": run.trial}
                row |= {"state": run.state, "epochs": len(run.epochs), "phase": last and last.phase}
                row |= {name: last and getattr(last, name) for name in ("test_acc", "train_acc", "train_loss",
                        "model_sparsity")}  # fmt: skip
                rows.append(row | self._traced(one, [run]))
        columns = (
            text("series", "series"), number("asked for (%)", "target_percent", "g"), number("trial", "trial", "d"),
            text("state", "state"), number("epochs", "epochs", "d"), text("phase", "phase"),
            number("test (%)", "test_acc"), number("train (%)", "train_acc"), number("train loss", "train_loss", ".3f"),
            number("weights remaining (%)", "model_sparsity"), HASH, RUNS,
        )  # fmt: skip
        caption = "The last epoch of every run so far. Going on: it has no summary yet, so that it runs or was stopped."
        return Table(caption, columns, rows)

    def epochs(self) -> str:
        """Every epoch of every run, as CSV."""
        return as_csv([
            {"series": series.name, "config_hash": one.config_hash, "trial": run.trial, "state": run.state,
             "number": number, **epoch.model_dump()}
            for series, one in self._experiments for run in one.runs for number, epoch in enumerate(run.epochs, 1)
        ])  # fmt: skip

    def costs(self) -> Table:
        """The costs of every experiment and its accuracy: epochs, FLOPs, seconds, memory."""
        rows = []
        for series, one in self._experiments:
            if not (spent := [totals(outcome.cost) for outcome in one.outcomes if outcome.cost]):
                continue
            row = {"series": series.name} | one.spread("weights_remaining_percent").columns("weights_remaining_percent")
            row |= one.spread(AFTER).columns("after")
            for name in spent[0]:
                row |= Spread.of(other[name] for other in spent).columns(name)
            devices = sorted({outcome.device for outcome in one.outcomes})
            rows.append(row | {"device": ", ".join(devices), "n": len(spent)} | self._traced(one))
        columns = (
            text("series", "series"), spread("weights remaining (%)", "weights_remaining_percent"),
            spread("after fine-tuning (%)", "after"), number("epochs", "epochs_mean", "g"),
            number("of them search", "search_epochs_mean", "g"), number("FLOPs, dense", "flops_dense_mean", "si"),
            number("FLOPs, masked", "flops_masked_mean", "si"), spread("seconds", "seconds", ".1f"),
            number("memory (bytes)", "peak_memory_bytes_mean", "si"), text("device", "device"),
            number("n", "n", "d"), HASH,
        )  # fmt: skip
        caption = (
            "Search and fine-tuning together, without the checks. Training FLOPs are three times the forward pass's, "
            "and once more where a dense teacher sees the images; masked FLOPs count each layer by its density at the "
            "time, which no stock kernel saves. Seconds and peak memory compare only on the same device. Means over n "
            "trials; their deviations stand in the CSV."
        )
        return Table(caption, columns, rows)

    def paper(self) -> Table:
        """The paper's results beside ours; without rows for a task without published results."""
        experiments = {one.config_hash: one for _, one in self._experiments}
        rows = []
        for row in beside_published(list(experiments.values()), published_for(self._task.config)):
            links = self._traced(experiments[row["config_hash"]]) if row["config_hash"] else {"runs": None, "links": {
                "config": [], "runs": []}}  # fmt: skip
            metric = METRICS.get(row["figure"]) or f"check {row['figure']}"
            rows.append({**row, "figure": metric, **links})
        columns = (
            text("method", "method"), text("metric", "figure"),
            number("paper: weights (%)", "paper_weights_remaining_percent"), number("paper (%)", "paper"),
            number("ours: weights (%)", "ours_weights_remaining_percent"), spread("ours (%)", "ours"),
            number("ours − paper (points)", "difference", "+.2f"), number("n", "n", "d"),
            number("paper: search epochs", "paper_search_epochs", "d"),
            number("ours: search epochs", "ours_search_epochs", "d"),
            text("options that differ, paper → ours", "differs_in"), text("paper's setting", "paper_setting"), HASH,
        )  # fmt: skip
        caption = (
            f"Test accuracies of the paper ({SOURCE}) beside those of runs on the same data set with the same network "
            "and method, at a density within 5% of the paper's. A dash: not among these runs."
        )
        return Table(caption, columns, rows)

    def runs(self) -> Table:
        """Every run and its folder."""
        rows = []
        for series, one in self._experiments:
            for run in one.runs:
                out = run.outcome
                row = {"series": series.name, "trial": run.trial, "seed": run.config.effective_seed, "state": run.state}
                row |= {"weights_remaining_percent": out and out.weights_remaining_percent}
                row |= {"before": out and out.test_acc_before_finetune, "after": out and out.test_acc_after_finetune}
                rows.append(row | {"device": out and out.device} | self._traced(one, [run]))
        columns = (
            text("series", "series"), number("trial", "trial", "d"), number("seed", "seed", "d"),
            text("state", "state"), number("weights remaining (%)", "weights_remaining_percent"),
            number("before fine-tuning (%)", "before"), number("after fine-tuning (%)", "after"),
            text("device", "device"), HASH,
            Column("folder", lambda row: row["runs"], links=lambda row: row["links"]["folders"]),
        )  # fmt: skip
        return Table("Every run with its folder and its options.", columns, rows)

    def _traced(self, one: Experiment, runs: Sequence[RunRecord] | None = None) -> Row:
        """Return a row's sources: its config hash, and links to the folders of the finished trials or of `runs`."""
        places = {os.path.relpath(run.folder, self._home): run for run in runs or one.runs}
        named = [place for place, run in places.items() if runs or run.state == FINISHED]
        links = {
            "config": [(one.config_hash, quote(f"{next(iter(places))}/config.yml"))],
            "folders": [(place, quote(f"{place}/")) for place in named],
            "runs": [
                (str(run.trial) if run.state == FINISHED else f"{run.trial} ({run.state})", quote(f"{place}/"))
                for place, run in places.items()
            ],
        }
        return {"config_hash": one.config_hash, "runs": "; ".join(named), "links": links}


def totals(cost: dict[str, Any]) -> dict[str, float]:
    """Sum the costs (`Spent`) of search and fine-tuning; memory, in bytes, is the greater of both."""
    parts = list(cost.values())
    scoring = sum(part.scoring_flops for part in parts)
    return {
        "epochs": sum(part.epochs for part in parts),
        "search_epochs": sum(part.epochs for name, part in cost.items() if name == "search"),
        "flops_dense": sum(part.training_flops_dense for part in parts) + scoring,
        "flops_masked": sum(part.training_flops_masked for part in parts) + scoring,
        "seconds": sum(part.seconds for part in parts),
        "peak_memory_bytes": max(part.peak_memory_bytes for part in parts),
    }


def _interval(row: Row) -> str:
    ends = (f"{row[end]:+.2f}".replace("-", "−") for end in ("low", "high"))
    return "–" if row["low"] is None else " to ".join(ends)
