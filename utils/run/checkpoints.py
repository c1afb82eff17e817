"""A run's checkpoints: written atomically at set times, verified when loaded; the newest ones are kept."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import load_tensors, write_atomic


@dataclass(frozen=True)
class Keeping:
    """When a stage is stored, and which of its checkpoints are kept.

    Attributes:
        every_epochs: epochs between two checkpoints.
        every_seconds: replaces `every_epochs`: seconds between two checkpoints, which may fall within an epoch.
        last: how many of a stage's newest checkpoints are kept; with 1 there is none to fall back to.
        copies_every: epochs between two permanent copies (below 1: no copies).
        copies_at: stage -> sets of further epochs after which it, or a sub-stage of it, gets a permanent copy.
    """

    every_epochs: int = 1
    every_seconds: float | None = None
    last: int = 2
    copies_every: int = -1
    copies_at: Mapping[str, Sequence[Container[int]]] = field(default_factory=dict)


def checkpoint_path(folder: Path, stage: str, back: int = 0) -> Path:
    """Return the path of a stage's newest checkpoint in this run folder, or of the one `back` checkpoints older.

    The permanent copy after epoch e is stored as that of a stage `STAGE_epoch_EEE`.

    Args:
        folder: the run folder.
        stage: such as `search/round_3`, whose file is `search-round_3.pt`.
        back: 0 for the newest, below `Keeping.last`.
    """
    return folder / "checkpoints" / f"{stage.replace('/', '-')}{f'.{back}' if back else ''}.pt"


class Checkpoints:
    """Stores and loads the checkpoints of a run.

    Args:
        folder: the run folder; checkpoints go to `checkpoints/` in it.
        keeping: when to store, and how many to keep.
    """

    def __init__(self, folder: Path, keeping: Keeping) -> None:
        self._folder = folder
        self._keeping = keeping
        self._stored = time.monotonic()

    def load(self, stage: str) -> dict[str, Any] | None:
        """Load a stage's newest readable checkpoint, with tensors on the CPU; None if the stage has not begun.

        A damaged checkpoint is skipped with a warning: the stage resumes from the one before it, with the same final
        result.

        Raises:
            UserError: the stage has checkpoints, but none can be read.
        """
        newest_first = (checkpoint_path(self._folder, stage, back) for back in range(max(2, self._keeping.last)))
        damaged: list[Path] = []
        for path in newest_first:
            if not path.exists():
                continue
            try:
                state = load_tensors(path)
            except UserError:
                damaged.append(path)
                continue
            if damaged:
                warnings.warn(f"the checkpoint {damaged[0]} is damaged: going on from {path.name}", stacklevel=3)
            return state
        if damaged:
            raise UserError(
                f"the checkpoint {damaged[0]} cannot be read: it is damaged, and there is no earlier one to go on "
                "from; remove it to begin its stage again"
            )
        return None

    def is_due(self, stage: str, finished_epoch: int | None = None) -> bool:
        """Return whether to store a stage now: at the end of `finished_epoch` (0-based), or if None within an epoch."""
        if finished_epoch is not None and self._is_copied(stage, finished_epoch):
            return True
        if self._keeping.every_seconds is not None:
            return time.monotonic() - self._stored >= self._keeping.every_seconds
        return finished_epoch is not None and (finished_epoch + 1) % self._keeping.every_epochs == 0

    def save(self, stage: str, state: dict[str, Any], finished_epoch: int | None = None) -> None:
        """Store a stage's state as its newest checkpoint, and a permanent copy if `finished_epoch` is due one.

        Args:
            stage: its name.
            state: tensors and plain values only, since `load` accepts nothing else.
            finished_epoch: 0-based; None within an epoch.

        Raises:
            UserError: the file cannot be written; earlier checkpoints are still there.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        # The copy first: a process that is killed in between makes the epoch, and the copy, again.
        if finished_epoch is not None and self._is_copied(stage, finished_epoch):
            write_atomic(checkpoint_path(self._folder, f"{stage}_epoch_{finished_epoch:03d}"), content)
        write_atomic(checkpoint_path(self._folder, stage), content, make_room=lambda: self._step_back(stage))
        self._stored = time.monotonic()

    def _step_back(self, stage: str) -> None:
        """Make room for a new checkpoint, once it is whole on the disk: each older one becomes one step older."""
        for back in range(self._keeping.last - 1, 0, -1):
            newer = checkpoint_path(self._folder, stage, back - 1)
            if newer.exists():
                os.replace(newer, checkpoint_path(self._folder, stage, back))

    def _is_copied(self, stage: str, epoch: int) -> bool:
        periodic = self._keeping.copies_every > 0 and (epoch + 1) % self._keeping.copies_every == 0
        return periodic or any(epoch in some for some in self._keeping.copies_at.get(stage.partition("/")[0], ()))
