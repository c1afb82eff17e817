"""A run's checkpoints: stored whole and in time, checked when they are loaded, the last ones kept."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import load_tensors, write_atomic


@dataclass(frozen=True)
class Keeping:
    """When a stage is stored, and what is kept of it.

    Attributes:
        every_epochs: store after every so many epochs.
        every_seconds: in place of that, store when so much time has passed, within an epoch as well.
        last: how many of a stage's newest checkpoints are kept; with 1 there is none to fall back to.
        copies_every: keep a copy for good every so many epochs (below 1: never).
        copies_at: stage -> epochs after which a copy of it, or of its sub-stages, is kept for good as well.
    """

    every_epochs: int = 1
    every_seconds: float | None = None
    last: int = 2
    copies_every: int = -1
    copies_at: Mapping[str, Container[int]] = field(default_factory=dict)


def checkpoint_path(folder: Path, stage: str, back: int = 0) -> Path:
    """Where a run in this folder keeps a stage's checkpoint, or the one stored `back` times before it.

    A copy kept after epoch e is that of a stage called `STAGE_epoch_EEE`.
    """
    return folder / "checkpoints" / f"{stage.replace('/', '-')}{f'.{back}' if back else ''}.pt"


class Checkpoints:
    """The checkpoints of the run in a folder.

    Args:
        folder: the run's; they go to `checkpoints/` in it.
        keeping: when, and how many.
    """

    def __init__(self, folder: Path, keeping: Keeping) -> None:
        self._folder = folder
        self._keeping = keeping
        self._stored = time.monotonic()

    def load(self, stage: str) -> dict[str, Any] | None:
        """What was last stored of a stage, tensors on the CPU; None when it has not begun.

        A checkpoint that is damaged is passed over, with a warning, for the one before it: the stage goes on from
        there, and comes to the same end.

        Raises:
            UserError: there are checkpoints, and none can be read.
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
        """Whether it is time to store a stage, at the end of an epoch (0-based) or, without one, within it."""
        if finished_epoch is not None and self._is_copied(stage, finished_epoch):
            return True
        if self._keeping.every_seconds is not None:
            return time.monotonic() - self._stored >= self._keeping.every_seconds
        return finished_epoch is not None and (finished_epoch + 1) % self._keeping.every_epochs == 0

    def save(self, stage: str, state: dict[str, Any], finished_epoch: int | None = None) -> None:
        """Store a stage's state, the one before it stepping back; after an epoch that is to be kept, a copy as well.

        Raises:
            UserError: it cannot be written; what was stored before is still there.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_atomic(checkpoint_path(self._folder, stage), content, make_room=lambda: self._step_back(stage))
        if finished_epoch is not None and self._is_copied(stage, finished_epoch):
            write_atomic(checkpoint_path(self._folder, f"{stage}_epoch_{finished_epoch:03d}"), content)
        self._stored = time.monotonic()

    def _step_back(self, stage: str) -> None:
        for back in range(self._keeping.last - 1, 0, -1):
            newer = checkpoint_path(self._folder, stage, back - 1)
            if newer.exists():
                os.replace(newer, checkpoint_path(self._folder, stage, back))

    def _is_copied(self, stage: str, epoch: int) -> bool:
        periodic = self._keeping.copies_every > 0 and (epoch + 1) % self._keeping.copies_every == 0
        return periodic or epoch in self._keeping.copies_at.get(stage.partition("/")[0], ())
