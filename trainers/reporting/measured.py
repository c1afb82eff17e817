"""Generate the README's table of results from the runs in `configs/resnet20/measured/`.

    python -m trainers.reporting.measured README.md
    python -m trainers.reporting.measured --collect results/paper_resnet20 README.md

rewrites the table. With `--collect` it first adds the finished runs of a results folder to these: of each run
`summary.json`, the table of epochs, the ticket and the options. No other module imports this one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainers.reporting.gather import gather
from trainers.reporting.published import AFTER, BEFORE, PUBLISHED, SAME, beside_published
from trainers.reporting.series import Experiment, tasks_of
from trainers.reporting.tables import NONE, Column, Table, number, spread, text
from trainers.tickets.file import TICKET
from utils.errors import UserError, counted
from utils.files import write_atomic
from utils.markdown import replace_between_markers

MEASURED = Path(__file__).resolve().parents[2] / "configs" / "resnet20" / "measured"
COMMAND = "python main.py --sweep configs/sweeps/paper_resnet20.yml"
OF_A_MACHINE = ("results_dir", "log_dir", "device", "gpu", "threads", "workers")
"""Options that say where a run was computed; they do not affect its result."""
ANY_PIXELS = tuple(name for name in SAME if name != "dataset")
METRICS = {BEFORE: "before training", AFTER: "after training", "mask_shuffle": "masks shuffled, trained",
           "weight_reinit": "weights drawn anew, trained"}  # fmt: skip


def collect(results: Path, into: Path = MEASURED) -> int:
    """Copy the finished runs of a results folder to `into`; return how many there were.

    Raises:
        UserError: no run in the folder is finished.
    """
    finished = [run for run in gather([results])[0] if run.outcome]
    if not finished:
        raise UserError(f"--collect {results}: no run in it is finished")
    for run in finished:
        place = into / run.folder.relative_to(results.resolve())
        for name in ("summary.json", run.config.results_filename, TICKET):
            write_atomic(place / name, (run.folder / name).read_bytes())
        options = yaml.safe_load(run.config.to_yaml())
        kept = {name: value for name, value in options.items() if name not in OF_A_MACHINE}
        write_atomic(place / "config.yml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    return len(finished)


def results(folder: Path = MEASURED) -> str:
    """Return Markdown: the paper's results beside ours, all our results, and what was not measured yet.

    Runs on other pixels than CIFAR-10's (an image folder) are compared too, and the column `pixels` names them.
    """
    runs = gather([folder])[0] if any(folder.rglob("summary.json")) else []
    series = [one for task in tasks_of(runs) for one in task.series]
    named = [(one.name, experiment) for one in series for experiment in one.experiments if experiment.outcomes]
    rows = list(beside_published([experiment for _, experiment in named], PUBLISHED, ANY_PIXELS))
    by_hash = {experiment.config_hash: experiment for _, experiment in named}
    found = [
        {**row, "figure": METRICS[row["figure"]], **_where(by_hash[row["config_hash"]])} for row in rows if row["n"]
    ]
    parts = [_beside_the_paper(found).markdown()] if found else []
    parts += [_all_of_it(named).markdown()] if named else []
    missing = [row for row in rows if not row["n"]]
    return "\n\n".join([*parts, *([_not_run(missing)] if missing else [])])


def _not_run(rows: Sequence[dict[str, Any]]) -> str:
    """List in one sentence the paper's results that no run repeats yet, and give the command that runs them."""
    listed = [
        f"{row['method']} at {row['paper_weights_remaining_percent']:g}% ({METRICS[row['figure']]}: {row['paper']:.2f})"
        for row in rows
    ]
    others = "all but Long Gem-Miner and learning-rate rewinding, which have configs of their own"
    return f"Not run yet, with the paper's accuracies: {', '.join(listed)}. `{COMMAND}` runs {others}."


def _beside_the_paper(rows: Sequence[dict[str, Any]]) -> Table:
    columns = [
        text("method", "method"), number("weights remaining (%)", "paper_weights_remaining_percent", "g"),
        text("metric", "figure"), number("paper (%)", "paper"), spread("ours (%)", "ours"), number("n", "n", "d"),
        text("pixels", "pixels"), text("device", "device"), number("hours", "hours", ".1f"),
        Column("config", lambda row: "", links=lambda row: [(Path(row["paper_setting"]).stem, row["paper_setting"])]),
    ]  # fmt: skip
    return Table("", columns, rows)


def _all_of_it(named: Sequence[tuple[str, Experiment]]) -> Table:
    rows = [
        {"method": name, "density": one.density, "setting": _setting(one), "n": len(one.outcomes),
         **one.spread("gem_percent").columns("gem"),
         **one.spread(BEFORE).columns(BEFORE), **one.spread(AFTER).columns(AFTER), **_where(one)}
        for name, one in named
    ]  # fmt: skip
    columns = [
        text("run", "method"), number("weights remaining (%)", "density", ".2f"), spread("gem (%)", "gem"),
        text("setting", "setting"),
        spread("before training (%)", BEFORE), spread("after training (%)", AFTER), number("n", "n", "d"),
        text("pixels", "pixels"), text("device", "device"), number("hours", "hours", ".1f"),
    ]  # fmt: skip
    return Table("", columns, rows)


def _where(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment's images and devices, and the average hours of a trial, checks included."""
    config = experiment.config
    pixels = config.dataset if config.dataset != "ImageFolder" else Path(config.data).name
    devices = sorted({one.device for one in experiment.outcomes})
    seconds = [one.seconds for one in experiment.outcomes]
    return {"pixels": pixels, "device": ", ".join(devices), "hours": sum(seconds) / len(seconds) / 3600}


def _setting(experiment: Experiment) -> str:
    """Describe the epochs of search (or that the ticket was given) and of training, the images per epoch, a teacher."""
    cost = experiment.outcomes[0].cost
    spent = [(name, cost[name]) for name in ("search", "finetune") if name in cost and cost[name].epochs]
    images = {round(one.images / one.epochs) for _, one in spent}
    epochs = " + ".join(str(one.epochs) for _, one in spent) or NONE
    given = "a given ticket, " if experiment.config.ticket else ""
    taught = ", with a teacher" if experiment.config.teacher else ""
    return f"{given}{epochs} epochs of {', '.join(f'{count:,}' for count in sorted(images))} images{taught}"


def main(argv: list[str] | None = None) -> int:
    """Collect runs if `--collect` is given, rewrite the table, and return the exit code."""
    parser = argparse.ArgumentParser(description="The table of results in README.md, from the measured runs.")
    parser.add_argument("--collect", type=Path, help="folder of results whose finished runs are taken over first")
    parser.add_argument("text", type=Path, help="README.md")
    given = parser.parse_args(argv)
    try:
        if given.collect:
            print(f"{counted(collect(given.collect), 'run')} taken over to {MEASURED}")
        changed = replace_between_markers(given.text.read_text(encoding="utf-8"), "results", results())
        write_atomic(given.text, changed)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
