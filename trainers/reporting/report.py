"""Make a report of run folders: one HTML page, the same in Markdown, and its plots and tables as files.

A section is a task, and `TaskSection` names its parts in the order of the page. To add a part, add a table to
`contents.Contents`, perhaps a plot to `plotting`, and a line to `section`.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from args_helper import Config
from data import DEFINED_BY_PATH
from trainers.reporting import plotting as drawings
from trainers.reporting.contents import Contents
from trainers.reporting.gather import FINISHED, gather
from trainers.reporting.page import File, Part, Report, Section, as_html, as_markdown
from trainers.reporting.series import Task, tasks_of
from trainers.reporting.tables import Table
from utils.errors import UserError, counted
from utils.files import read_json, write_atomic, write_json

PAGE, MARKDOWN, MANIFEST = "report.html", "report.md", "report.json"


def make_report(config: Config) -> None:
    """Write the report on the runs in the folders `report` to `report_dir`, and print its path.

    Raises:
        UserError: a folder does not exist, none holds a run, or other files are where the report would be written.
    """
    roots = [Path(root) for root in config.report]
    home = Path(config.report_dir) if config.report_dir else roots[0] / "report"
    runs, problems = gather(roots)
    for problem in problems:
        warnings.warn(f"report: {problem.folder}: {problem.text}", stacklevel=2)
    sections = [TaskSection(task, number, home.resolve()).section() for number, task in enumerate(tasks_of(runs), 1)]
    ended = sum(run.state == FINISHED for run in runs)
    command = ["python", "main.py", "--report", *config.report]
    command += ["--report_dir", config.report_dir] if config.report_dir else []
    about = (
        f"Finished runs: {ended}, others: {len(runs) - ended}, in {', '.join(config.report)}, "
        f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC. Made by: {shlex.join(command)}"
    )
    report = Report("Lottery tickets side by side", about, sections, problems)
    write_report(home, report)
    print(f"finished runs: {ended}, others: {len(runs) - ended}, sections: {len(sections)}")
    print(f"  report               {home / PAGE}")
    print(f"  the same elsewhere   {home / MARKDOWN}, {home}/figures, {home}/tables")


def write_report(home: Path, report: Report) -> None:
    """Write a report's files, the page last; remove files of an older report that this one does not have.

    Raises:
        UserError: a file to write exists and is not from a report.
    """
    files = {file.path: file.content for file in report.files}
    files |= {MARKDOWN: as_markdown(report).encode(), PAGE: as_html(report).encode()}
    older = _older(home)
    taken = [name for name in (*files, MANIFEST) if (home / name).exists() and name not in older]
    if taken:
        raise UserError(
            f"report: {home / taken[0]} is not of a report, and is not written over; give another --report_dir"
        )
    # First with the old files as well: after a crash in between, the next report still knows all that are a report's.
    write_json(home / MANIFEST, {"files": sorted({*older, *files, MANIFEST})})
    for name, content in files.items():
        write_atomic(home / name, content)
    for name in older - set(files) - {MANIFEST}:
        (home / name).unlink(missing_ok=True)
    write_json(home / MANIFEST, {"files": sorted({*files, MANIFEST})})


def _older(home: Path) -> set[str]:
    """Return the files that an earlier report wrote here, by its own list.

    Only names that a report can have count, because files on this list are overwritten and deleted.
    """
    if not (home / MANIFEST).is_file():
        return set()
    said = read_json(home / MANIFEST)
    listed = said.get("files") if isinstance(said, dict) else None
    pattern = rf"{PAGE}|{MARKDOWN}|{MANIFEST}|(figures|tables)/[\w.-]+\.(svg|png|csv)"
    return {name for name in listed or () if isinstance(name, str) and re.fullmatch(pattern, name)}


class TaskSection:
    """The report's section on one task.

    Args:
        task: the data set, the network, and what was run on them.
        number: of the section.
        home: the folder of the report.
    """

    def __init__(self, task: Task, number: int, home: Path) -> None:
        self._task = task
        words = re.sub(r"[^a-z0-9]+", "-", task.title.lower()).strip("-")[:60]
        self._slug = f"{number}-{words}"
        self._tables = Contents(task, home)

    def section(self) -> Section:
        """Return the section with all its parts."""
        part, tables = self._part, self._tables
        parts = [
            part("accuracy", "Accuracy against weights remaining", tables.accuracy(), drawings.draw_accuracy,
                caption="Mean ± standard deviation of the test accuracy over trials; dashed: the dense network (band: "
                "± standard deviation); dotted: guessing. Before fine-tuning, the weights are the gem's. The panels' "
                "axes differ; points of one density are drawn up to 3% beside it, so that bars can be told apart.",
                notes=[*self._not_at_initialisation(), *self._also_differing()],
            ),
            part("checks", "Sanity checks", tables.checks(), drawings.draw_checks,
                caption="Tickets above their checks, mean ± standard deviation over trials. The verdicts, by the "
                "paired test, stand in the table: bars that overlap do not decide.",
            ),
            part("layers", "Density layer by layer", tables.layers(), drawings.draw_layers, folded=True,
                caption="Weights remaining in each layer, mean over trials. Hollow, on the floor: the layer has none "
                "left.",
            ),
            part("curves", "Learning curves", tables.curves(), drawings.draw_curves, folded=True,
                caption="Test accuracy at each epoch, one line a density: mean over finished trials, band ± standard "
                "deviation. A stroke across: fine-tuning begins. A triangle ends the line of a run that goes on. "
                "Where the threshold of the rounding moves, a panel shows it.",
                more=[("epochs", tables.epochs())],
            ),
            part("costs", "What it cost", tables.costs(), drawings.draw_costs,
                caption="Test accuracy after fine-tuning against the cost of search and fine-tuning together, log "
                "axes; weights remaining at each point.",
            ),
            part("paper", "Beside the paper", tables.paper()),
            part("runs", "Runs", tables.runs()),
        ]  # fmt: skip
        return Section(self._slug, self._task.title, self._notes(), [one for one in parts if one])

    def _part(
        self, name: str, heading: str, table: Table, draw: drawings.Drawing | None = None, *,
        more: Sequence[tuple[str, str]] = (), **words: object,
    ) -> Part | None:  # fmt: skip
        """Return a part and its files; None if the table has no rows."""
        if not table.rows:
            return None
        figure = draw and draw(self._task, table.rows)
        stem = f"{self._slug}_{name}"
        files = [File(f"tables/{stem}.csv", table.csv().encode(), "table (CSV)")]
        files += [File(f"tables/{self._slug}_{other}.csv", text.encode(), "every epoch (CSV)") for other, text in more]
        if figure:
            files.append(File(f"figures/{stem}.svg", figure.wide.encode(), "plot (SVG)"))
            files.append(File(f"figures/{stem}.png", figure.png, "plot (PNG)"))
            words["alt"] = f"{heading}, {self._task.title}. {words['caption']} The table below has all its numbers."
        return Part(stem, heading, f"{heading}, {self._task.title}", table, figure, files=files, **words)

    def _not_at_initialisation(self) -> list[str]:
        """Name the series whose masks were found while or after weights were trained."""
        named = [one.name for one in self._task.tickets if not one.at_initialisation]
        found = "Not at initialisation, as the mask was found while the weights were trained, or after"
        return [f"{found}: {', '.join(named)}."] if named else []

    def _also_differing(self) -> list[str]:
        """List what differs along a line of the plot besides the density."""
        return [
            f"Along {one.name}, densest first, {name} differs as well: {', '.join(values)}."
            for one in self._task.series
            for name, values in one.also_differs.items()
        ]

    def _notes(self) -> list[str]:
        config = self._task.config
        images = f"the data set {config.dataset}"
        notes = []
        if config.dataset in DEFINED_BY_PATH:
            images = f"the folder {config.data} (dataset {config.dataset})"
            notes = ["Results published for a data set are not set beside these runs: a folder's images may be others."]
        experiments = sum(len(one.experiments) for one in self._task.series)
        return [f"Images: {images}. {counted(experiments, 'experiment')} in {len(self._task.series)} series.", *notes]
