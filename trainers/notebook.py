"""Run experiments from a notebook: `from trainers import mine; run = mine("configs/quickstart.yml")`.

Attributes of a run are read from its folder when first asked for; only `mine` computes.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from args_helper import Config, config_of, parse_args
from data import OF_FOLDERS
from data.load import load_data
from trainers.pipeline import run_trials
from trainers.results.curves import curves
from trainers.tickets.file import TICKET, read_ticket
from trainers.tickets.ticket import Ticket
from trainers.tickets.trained import trained
from trainers.training.epoch_row import read_epochs
from utils.errors import UserError
from utils.files import read_json
from utils.options.modes import MODES

OF_COMMANDS = (*MODES, "sweep", "resume", "print_config", "max_time")
"""Options that ask for something other than new trials, or for what `mine` does by itself."""


@dataclass(frozen=True)
class Mined:
    """A finished run.

    Attributes:
        folder: of the run.
        config: its options.
    """

    folder: Path
    config: Config

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The final metrics; accuracies and densities in percent."""
        return read_json(self.folder / "summary.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One row per epoch of search, fine-tuning and checks (`phase`), for `pandas.DataFrame(run.metrics)`."""
        own = self.folder / self.config.results_filename
        tables = sorted(own.parent.glob(f"{glob.escape(own.stem)}*{glob.escape(own.suffix)}"))
        return [row for table in tables for row in _rows(table)]

    @cached_property
    def ticket(self) -> Ticket:
        """The ticket: masks, the gem, and the weights that fine-tuning starts from, on the CPU."""
        return read_ticket(self.folder / TICKET)[0]

    @cached_property
    def model(self) -> nn.Module:
        """The trained network (or the gem, if it was not trained), pruned weights 0, in evaluation mode, on the CPU."""
        spec = None
        if self.config.dataset in OF_FOLDERS:  # their files decide the number of classes and the size of the images
            spec = load_data(self.config.model_copy(update={"device": "cpu", "decode_on": "cpu"})).spec
        return trained(self.folder, self.config, spec).network

    @property
    def curves(self) -> Figure:
        """A plot of accuracy and weights remaining over the epochs, as in `curves.png`."""
        rows = [row for row in self.metrics if not row["phase"].startswith("check/")]
        return curves(rows, self.summary)


def mine(config: str | Path | None = None, **options: Any) -> Mined:
    """Run an experiment as `python main.py` does; resume a begun one, and load a finished one.

    Args:
        config: a YAML file; None: the defaults.
        options: any options; they override the file's.

    Returns:
        The run; the last one of several trials (`num_trial`).

    Raises:
        UserError: the options or the data cannot be used, or an option is one of `OF_COMMANDS`.
        Stopped: interrupted; everything is saved, and the same call resumes.
        Diverged: the loss or the weights are no longer finite.
    """
    asked = config_of(options, path=config)
    if refused := [name for name in OF_COMMANDS if options.get(name)]:
        told = "mine runs trials, and goes on with those that were begun"
        raise UserError(f"{', '.join(refused)}: for the command line only; {told}")
    try:
        folder = run_trials(asked, go_on=True)
    except UserError as error:
        raise UserError(re.sub(r"--name (\S+)", r'name="\1"', str(error))) from error
    return Mined(folder, parse_args(["--resume", str(folder)]))


def _rows(table: Path) -> list[dict[str, Any]]:
    rows, said = read_epochs(table)
    if said:
        raise UserError(f"{table}: {said}")
    return [row.model_dump() for row in rows]
