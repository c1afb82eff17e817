"""Shows the progress of a stage: a bar on a terminal, otherwise one plain line per epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

from utils.distributed.launch import launched


class Progress(tqdm):
    """The progress over the epochs and steps of one stage; within an epoch it reads nothing from the device.

    Args:
        stage: the name in front of the bar or line.
        epochs: number of epochs of the stage.
        steps: number of steps per epoch.
        refresh_every: steps between two refreshes of the bar.
    """

    def __init__(self, stage: str, epochs: int, steps: int, refresh_every: int) -> None:
        self._stage, self._epochs, self._steps = stage, epochs, steps
        shown = sys.stderr.isatty() and launched().rank == 0
        # mininterval 0: steps alone decide when the bar is drawn, not the time since it was.
        super().__init__(
            total=epochs * steps, desc=stage, miniters=refresh_every, mininterval=0.0, dynamic_ncols=True,
            disable=not shown,
        )  # fmt: skip

    def at(self, epoch: int, step: int) -> None:
        """Move the bar to step `step` of epoch `epoch` (both 0-based), which is about to run."""
        self.update(epoch * self._steps + step - self.n)

    def epoch_done(self, epoch: int, metrics: Mapping[str, str]) -> None:
        """Show the metrics of a finished epoch (0-based): name -> text, in this order."""
        if self.disable:
            shown = "  ".join(f"{name} {value}" for name, value in metrics.items())
            print(f"{self._stage} {epoch + 1}/{self._epochs}  {shown}", flush=True)
        else:
            self.set_postfix(metrics, refresh=False)
            self.at(epoch + 1, 0)
