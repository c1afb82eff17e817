"""A run on disk: its folder, its random streams, its stages' checkpoints, its rows and its log."""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from utils.errors import Stopped, UserError
from utils.files import load_tensors, write_atomic, write_csv
from utils.progress import Progress

Row = dict[str, Any]
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""The signals that ask to stop; batch systems send SIGUSR1 when the time is nearly up."""


def derive_rng(seed: int, *path: str | int) -> torch.Generator:
    """A generator on the CPU that is a pure function of the seed and a path such as ("search", "batches", 3).

    Streams are independent of one another: a new one shifts none that was there, and a resumed run draws what the
    undisturbed one would have drawn.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def checkpoint_path(folder: Path, stage: str) -> Path:
    """Where a run in this folder keeps a stage's checkpoint; that kept after epoch e is of `STAGE_epoch_EEE`."""
    return folder / "checkpoints" / f"{stage.replace('/', '-')}.pt"


class Run:
    """Where and when things are kept. What is kept is its callers' business: it knows no model and no algorithm.

    Args:
        folder: the run's folder; checkpoints go to `checkpoints/` in it.
        log_folder: TensorBoard events, one sub-folder a stage.
        seed: what every random stream derives from.
        csv_name: the table of rows; that of a stage `check/NAME` is called after it.
        keep_every: keep a copy of the checkpoint every so many epochs (below 1: never).
        keep_at: stage -> epochs after which a copy of it, or of its sub-stages, is kept as well.
        refresh_every: steps between two refreshes of the progress bar.
    """

    def __init__(
        self,
        folder: Path,
        log_folder: Path,
        seed: int,
        csv_name: str = "acc_and_sparsity.csv",
        *,
        keep_every: int = -1,
        keep_at: Mapping[str, frozenset[int]] | None = None,
        refresh_every: int = 10,
    ) -> None:
        self.folder = folder
        self.log_folder = log_folder
        self.seed = seed
        self._csv_name = Path(csv_name)
        self._keep_every = keep_every
        self._keep_at = keep_at or {}
        self._refresh_every = refresh_every
        self._rows: dict[str, list[Row]] = {}
        self._costs: dict[str, Row] = {}
        self._writers: dict[str, Any] = {}
        self._signum: int | None = None

    # ---- randomness ------------------------------------------------------------------------------------------------

    def rng(self, stage: str, stream: str, epoch: int = 0, step: int = 0) -> torch.Generator:
        """The generator of one stream of one stage at one epoch (and step); see `derive_rng`."""
        return derive_rng(self.seed, stage, stream, epoch, step)

    # ---- stages ----------------------------------------------------------------------------------------------------

    def load(self, stage: str) -> dict[str, Any] | None:
        """What `save` last stored of a stage, tensors on the CPU; None when the stage has not begun.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        path = self._checkpoint(stage)
        if not path.exists():
            return None
        try:
            return load_tensors(path)
        except UserError as error:
            raise UserError(f"the checkpoint {path} cannot be read; remove it to begin its stage again") from error

    def save(self, stage: str, state: dict[str, Any], finished_epoch: int | None = None) -> None:
        """Store a stage's state in place of the last one; after an epoch that is to be kept, a copy as well."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self._checkpoint(stage), buffer.getvalue())
        if finished_epoch is not None and self._is_kept(stage, finished_epoch):
            write_atomic(self._checkpoint(f"{stage}_epoch_{finished_epoch:03d}"), buffer.getvalue())

    def _checkpoint(self, stage: str) -> Path:
        return checkpoint_path(self.folder, stage)

    def _is_kept(self, stage: str, epoch: int) -> bool:
        periodic = self._keep_every > 0 and (epoch + 1) % self._keep_every == 0
        return periodic or epoch in self._keep_at.get(stage.partition("/")[0], ())

    # ---- rows and events -------------------------------------------------------------------------------------------

    def record(self, stage: str, rows: list[Row], cost: Row | None = None) -> None:
        """Take the rows a stage has so far, and what it cost so far; write the table the rows belong to anew."""
        self._rows[stage] = list(rows)
        self._costs[stage] = dict(cost or {})
        table = self._table(stage)
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

    def writer(self, stage: str = "", first_epoch: int | None = None) -> Any:
        """The TensorBoard writer of a stage; events from `first_epoch` on that an earlier attempt left are dropped."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writers[stage] = SummaryWriter(str(self.log_folder / stage), purge_step=first_epoch)
        return self._writers[stage]

    def log(self, stage: str, epoch: int, scalars: Mapping[str, float], histograms: Mapping[str, Any]) -> None:
        """Write an epoch's scalars and histograms to TensorBoard."""
        writer = self.writer(stage, epoch)
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, epoch)
        for tag, values in histograms.items():
            writer.add_histogram(tag, values, epoch)
        writer.flush()

    def progress(self, stage: str, epochs: int, steps: int) -> Progress:
        """A display of a stage's progress (see `utils.progress`)."""
        return Progress(stage, epochs, steps, self._refresh_every)

    # ---- stopping --------------------------------------------------------------------------------------------------

    @contextmanager
    def until_stopped(self) -> Iterator[Run]:
        """Within: SIGINT, SIGTERM and SIGUSR1 ask the run to stop at the next step; a second one stops it at once."""
        previous = {name: signal.signal(name, self._ask_to_stop) for name in STOPPING}
        try:
            yield self
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()

    def _ask_to_stop(self, signum: int, _frame: FrameType | None) -> None:
        if self._signum is not None:
            raise KeyboardInterrupt
        self._signum = signum

    @property
    def stop_asked(self) -> bool:
        """Whether the run was asked to stop: save, then call `stop`."""
        return self._signum is not None

    def stop(self) -> None:
        """Leave the run, everything being saved.

        Raises:
            Stopped: always, when the run was asked to stop.
        """
        if self._signum is not None:
            raise Stopped(self._signum, self.folder)


def _is_under(name: str, stages: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{stage}/") for stage in stages)
