"""A run on disk: its folder, its random streams, its stages' checkpoints, its rows and its log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from utils.distributed.collectives import Agreement, rank, rank_zero_only
from utils.errors import UserError
from utils.files import write_csv
from utils.rng import derive_rng
from utils.run.checkpoints import Checkpoints, Keeping
from utils.run.progress import Progress
from utils.run.stopping import Stopping

Row = dict[str, Any]


class Run:
    """Where and when things are kept. What is kept is its callers' business: it knows no model and no algorithm.

    Of several ranks each has one and calls it alike; the first reads, writes, and has the clock.

    Args:
        folder: the run's folder; checkpoints go to `checkpoints/` in it.
        log_folder: TensorBoard events, one sub-folder a stage.
        seed: what every random stream derives from.
        csv_name: the table of rows; that of a stage `check/NAME` is called after it.
        keeping: when its stages are stored.
        stopping: what asks it to stop.
        refresh_every: steps between two refreshes of the progress bar.
    """

    def __init__(
        self,
        folder: Path,
        log_folder: Path,
        seed: int,
        csv_name: str = "acc_and_sparsity.csv",
        *,
        keeping: Keeping | None = None,
        stopping: Stopping | None = None,
        refresh_every: int = 10,
    ) -> None:
        self.folder = folder
        self.log_folder = log_folder
        self.seed = seed
        self._csv_name = Path(csv_name)
        self._checkpoints = Checkpoints(folder, keeping or Keeping())
        self._stopping = stopping or Stopping()
        self._agreement = Agreement()
        self._refresh_every = refresh_every
        self._rows: dict[str, list[Row]] = {}
        self._costs: dict[str, Row] = {}
        self._writers: dict[str, Any] = {}

    # ---- randomness ------------------------------------------------------------------------------------------------

    def rng(self, stage: str, stream: str, epoch: int = 0, step: int = 0) -> torch.Generator:
        """The generator of one stream of one stage at one epoch (and step); see `derive_rng`."""
        return derive_rng(self.seed, stage, stream, epoch, step)

    # ---- stages ----------------------------------------------------------------------------------------------------

    @rank_zero_only
    def load(self, stage: str) -> dict[str, Any] | None:
        """What `save` last stored of a stage, tensors on the CPU; None when the stage has not begun.

        Raises:
            UserError: there are checkpoints of it, and none can be read.
        """
        return self._checkpoints.load(stage)

    @rank_zero_only
    def save(self, stage: str, state: dict[str, Any], finished_epoch: int | None = None) -> None:
        """Store a stage's state; see `Checkpoints.save`."""
        self._checkpoints.save(stage, state, finished_epoch)

    def is_due(self, stage: str, finished_epoch: int | None = None) -> bool:
        """Whether it is time to store a stage; see `Checkpoints.is_due`."""
        return self._checkpoints.is_due(stage, finished_epoch)

    # ---- rows and events -------------------------------------------------------------------------------------------

    def record(self, stage: str, rows: list[Row], cost: Row | None = None) -> None:
        """Take the rows a stage has so far, and what it cost so far; write the table the rows belong to anew."""
        self._rows[stage] = list(rows)
        self._costs[stage] = dict(cost or {})
        self._write_table(self._table(stage))

    @rank_zero_only
    def _write_table(self, table: Path) -> None:
        together = [row for name, part in self._rows.items() if self._table(name) == table for row in part]
        write_csv(self.folder / table, together)

    def rows(self, *stages: str) -> list[Row]:
        """The rows so far of these stages and their sub-stages (`search` has `search/round_3`)."""
        return [row for name, rows in self._rows.items() if _is_under(name, stages) for row in rows]

    def costs(self, *stages: str) -> list[Row]:
        """What these stages and their sub-stages have cost so far, each as it was recorded."""
        return [cost for name, cost in self._costs.items() if _is_under(name, stages) and cost]

    def seconds(self, *stages: str) -> float:
        """Seconds spent in these stages and their sub-stages, over all resumptions."""
        return sum(row["seconds"] for row in self.rows(*stages))

    def _table(self, stage: str) -> Path:
        kind, _, check = stage.partition("/")
        return self._csv_name.with_stem(f"{self._csv_name.stem}_{check}") if kind == "check" else self._csv_name

    def _writer(self, stage: str = "", first_epoch: int | None = None) -> Any:
        """The TensorBoard writer of a stage; events from `first_epoch` on that an earlier attempt left are dropped."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writers[stage] = SummaryWriter(str(self.log_folder / stage), purge_step=first_epoch)
        return self._writers[stage]

    @rank_zero_only
    def log(self, stage: str, epoch: int, scalars: Mapping[str, float], histograms: Mapping[str, Any]) -> None:
        """Write an epoch's scalars and histograms to TensorBoard.

        Raises:
            UserError: they cannot be written.
        """
        with self._logging():
            writer = self._writer(stage, epoch)
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, epoch)
            for tag, values in histograms.items():
                writer.add_histogram(tag, values, epoch)
            writer.flush()

    @rank_zero_only
    def log_against(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars over something else than epochs, which may come back to where it was; raises as `log` does."""
        with self._logging():
            writer = self._writer(f"{stage}/against")
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

    @rank_zero_only
    def log_layout(self, layout: Mapping[str, Any]) -> None:
        """Tell TensorBoard which scalars to show in one chart; raises as `log` does."""
        with self._logging():
            self._writer().add_custom_scalars(layout)
            self._writer().flush()

    @rank_zero_only
    def log_text(self, tag: str, text: str) -> None:
        """Write a text (Markdown) about the whole run to TensorBoard; raises as `log` does."""
        with self._logging():
            self._writer().add_text(tag, text)
            self._writer().flush()

    def log_hparams(self, options: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Enter the run into TensorBoard's table of hyperparameters; raises as `log` does."""
        with self._logging():
            self._writer().add_hparams(dict(options), dict(figures), run_name=".")
            self._writer().flush()

    @contextmanager
    def _logging(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write TensorBoard events to {self.log_folder}: {error.strerror or error}"
            ) from error

    def progress(self, stage: str, epochs: int, steps: int) -> Progress:
        """A display of a stage's progress (see `utils.run.progress`)."""
        return Progress(stage, epochs, steps, self._refresh_every)

    # ---- stopping --------------------------------------------------------------------------------------------------

    @contextmanager
    def until_stopped(self) -> Iterator[Run]:
        """Within: signals ask the run to stop at the next step; a second one stops it at once."""
        try:
            with self._stopping.installed():
                yield self
        finally:
            for writer in self._writers.values():
                with suppress(OSError):  # all that counts has been flushed, or its failure been told
                    writer.close()
            self._writers.clear()

    def asked(self, stage: str, finished_epoch: int | None = None) -> tuple[int, bool]:
        """What is to be done at this point of a stage; see `is_due` for the two kinds of points.

        Of several ranks one that is asked to stop asks all: at the end of an epoch at once, and within it at the next
        step, so that no step waits.

        Returns:
            The exit code to `stop` with when all is saved (0: go on), and whether it is time to save in any case.
        """
        agree = self._agreement.soon if finished_epoch is None else self._agreement.now
        due = rank() == 0 and self.is_due(stage, finished_epoch)
        code, due = agree(self._stopping.asked, due)
        return code, bool(due)

    def stop(self, code: int) -> None:
        """Leave the run, everything being saved.

        Raises:
            Stopped: always.
        """
        self._stopping.raise_stopped(self.folder, code)


def _is_under(name: str, stages: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{stage}/") for stage in stages)
