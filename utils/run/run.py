"""A run on disk: its folder, random streams, stage checkpoints, table of rows, and TensorBoard log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """Decides where and when a run is saved. Callers decide what is saved: it knows no model and no algorithm.

    Every rank has its own `Run` and makes the same calls; only rank 0 reads, writes, and consults the clock.

    A stage calls `load` first, and `record` with the rows so far. Before each step but an epoch's first it calls
    `asked`; at the end of an epoch `log`, `asked`, `save` if told to, and `record`. It calls `stop` last, after `save`.
    Only `asked` is called at every step, because it reads nothing from the device.

    Args:
        folder: the run folder; checkpoints go to `checkpoints/` in it.
        log_folder: TensorBoard events, one sub-folder per stage.
        seed: the seed of all random streams.
        csv_name: the table of rows; a stage `check/NAME` gets a table of its own, with NAME appended.
        keeping: when stages are saved.
        stopping: decides when the run stops.
        refresh_every: steps between two refreshes of the progress bar.

    Attributes:
        is_recorded: whether the folder has got its `config.yml`; if that is gone, nothing more is stored.
        has_stored: whether this process has stored a stage.
    """

    is_recorded = has_stored = False

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
        """Derive the generator of a stage's stream at an epoch (and step); see `derive_rng`.

        Args:
            stage: such as `search`.
            stream: what is drawn, such as `batches`; each stream of a stage has numbers of its own.
            epoch, step: 0-based.
        """
        return derive_rng(self.seed, stage, stream, epoch, step)

    # ---- stages ----------------------------------------------------------------------------------------------------

    @rank_zero_only
    def load(self, stage: str) -> dict[str, Any] | None:
        """Load what `save` last stored for a stage, with tensors on the CPU; None if the stage has not begun.

        Raises:
            UserError: the stage has checkpoints, but none can be read.
        """
        return self._checkpoints.load(stage)

    @rank_zero_only
    def save(self, stage: str, state: dict[str, Any], finished_epoch: int | None = None) -> None:
        """Store a stage's state; see `Checkpoints.save`."""
        self._refuse_if_gone()
        self._checkpoints.save(stage, state, finished_epoch)
        self.has_stored = True

    def _refuse_if_gone(self) -> None:
        """Raises: UserError: the folder is no longer there; a new one would have the rest of the run only."""
        if self.is_recorded and not (self.folder / "config.yml").is_file():
            raise UserError(
                f"{self.folder} was moved or removed while the run went on: with --resume and the folder where it is "
                "now, the run goes on from its last checkpoint"
            )

    # ---- rows and events -------------------------------------------------------------------------------------------

    def record(self, stage: str, rows: list[Row], cost: Row | None = None) -> None:
        """Replace a stage's rows and cost by those so far, and rewrite the table that holds the rows.

        Args:
            stage: its name.
            rows: all epochs of the stage (see `trainers.training.epoch_row`).
            cost: its costs (see `trainers.training.cost`); None: it has none.
        """
        self._rows[stage] = list(rows)
        self._costs[stage] = dict(cost or {})
        self._write_table(self._table(stage))

    @rank_zero_only
    def _write_table(self, table: Path) -> None:
        self._refuse_if_gone()
        together = [row for name, part in self._rows.items() if self._table(name) == table for row in part]
        write_csv(self.folder / table, together)

    def rows(self, *stages: str) -> list[Row]:
        """Return the rows so far of these stages and their sub-stages (`search` includes `search/round_3`), or all."""
        return [row for name, rows in self._rows.items() if not stages or _is_under(name, stages) for row in rows]

    def costs(self, *stages: str) -> list[Row]:
        """Return the recorded costs so far of these stages and their sub-stages, one row per stage."""
        return [cost for name, cost in self._costs.items() if _is_under(name, stages) and cost]

    def seconds(self, *stages: str) -> float:
        """Return the seconds spent in these stages and their sub-stages, including before each resume."""
        return sum(row["seconds"] for row in self.rows(*stages))

    def _table(self, stage: str) -> Path:
        kind, _, check = stage.partition("/")
        return self._csv_name.with_stem(f"{self._csv_name.stem}_{check}") if kind == "check" else self._csv_name

    @rank_zero_only
    def log(self, stage: str, epoch: int, scalars: Mapping[str, float], histograms: Mapping[str, Any]) -> None:
        """Write an epoch's scalars and histograms to TensorBoard.

        Args:
            stage: its name, the sub-folder of its events.
            epoch: 0-based, the x-axis.
            scalars: tag -> value.
            histograms: tag -> tensor of values.

        Raises:
            UserError: the events cannot be written.
        """
        with self._events(stage, epoch) as writer:
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, epoch)
            for tag, values in histograms.items():
                writer.add_histogram(tag, values, epoch)

    @rank_zero_only
    def log_against(self, stage: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Write scalars over an x-axis other than epochs, whose values may repeat; raises as `log` does.

        Args:
            stage: its name.
            points: all so far, as (x, tag -> value). A new writer replaces an earlier attempt's by them, because their
                x does not tell which of them are repeated; later only the last one is written.
        """
        place = f"{stage}/against"
        new = points[-1:] if place in self._writers else points
        with self._events(place, first_epoch=0) as writer:
            for step, scalars in new:
                for tag, value in scalars.items():
                    writer.add_scalar(tag, value, step)

    @rank_zero_only
    def log_beginning(self, options: str, layout: Mapping[str, Any]) -> None:
        """Write the run's options (Markdown) to TensorBoard, and the charts that show several scalars; raises as `log`.

        Args:
            options: a text about the whole run.
            layout: as `SummaryWriter.add_custom_scalars` takes it.
        """
        with self._events() as writer:
            writer.add_text("config", options)
            writer.add_custom_scalars(layout)

    def log_hparams(self, options: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Add the run to TensorBoard's table of hyperparameters; raises as `log` does."""
        with self._events() as writer:
            writer.add_hparams(dict(options), dict(metrics), run_name=".")

    @contextmanager
    def _events(self, stage: str = "", first_epoch: int | None = None) -> Iterator[Any]:
        """Lend the block a stage's writer, and flush it; a `UserError` says where events cannot be written.

        A new writer drops an earlier attempt's events from `first_epoch` on.
        """
        try:
            if stage not in self._writers:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                self._writers[stage] = SummaryWriter(str(self.log_folder / stage), purge_step=first_epoch)
            yield (writer := self._writers[stage])
            writer.flush()
        except OSError as error:
            raise UserError(
                f"cannot write TensorBoard events to {self.log_folder}: {error.strerror or error}"
            ) from error

    def progress(self, stage: str, epochs: int, steps: int) -> Progress:
        """Make the progress display of a stage (see `utils.run.progress`)."""
        return Progress(stage, epochs, steps, self._refresh_every)

    # ---- stopping --------------------------------------------------------------------------------------------------

    @contextmanager
    def until_stopped(self) -> Iterator[Run]:
        """Handle signals for the block: the first asks the run to stop at the next step, a second stops it at once."""
        try:
            with self._stopping.installed():
                yield self
        finally:
            for writer in self._writers.values():
                with suppress(OSError):  # events were flushed before, or the failure was reported then
                    writer.close()
            self._writers.clear()

    def asked(self, stage: str, finished_epoch: int | None = None) -> tuple[int, bool]:
        """Decide whether to stop or save now, at the end of an epoch or (`finished_epoch` None) within one.

        If one rank is asked to stop, all stop: at the end of an epoch at once, within an epoch one step later, so that
        no step waits for the other ranks.

        Returns:
            The exit code to `stop` with once all is saved (0: go on), and whether it is time to save in any case.
        """
        agree = self._agreement.soon if finished_epoch is None else self._agreement.now
        due = rank() == 0 and self._checkpoints.is_due(stage, finished_epoch)
        code, due = agree(self._stopping.asked, due)
        return code, bool(due)

    def stop(self, code: int) -> None:
        """Stop the run, once all is saved.

        Raises:
            Stopped: always.
        """
        self._stopping.raise_stopped(self.folder, code)


def _is_under(name: str, stages: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{stage}/") for stage in stages)
