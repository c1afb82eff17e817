"""What a person sees while a stage runs: a bar on a terminal, one plain line an epoch anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from utils.distributed.launch import launched


class Progress:
    """Progress over the epochs and steps of one stage. Nothing is read from the device for it within an epoch.

    Args:
        stage: shown in front.
        epochs: of the stage.
        steps: of an epoch.
        refresh_every: steps between two refreshes of the bar.
    """

    def __init__(self, stage: str, epochs: int, steps: int, refresh_every: int) -> None:
        self._stage, self._epochs, self._steps = stage, epochs, steps
        self._bar = None
        if sys.stderr.isatty() and launched().rank == 0:
            self._bar = tqdm(
                total=epochs * steps, desc=stage, miniters=refresh_every, mininterval=0.0, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def at(self, epoch: int, step: int) -> None:
        """Step `step` of epoch `epoch` (both 0-based) is about to run."""
        if self._bar is not None:
            self._bar.update(epoch * self._steps + step - self._bar.n)

    def epoch_done(self, epoch: int, figures: Mapping[str, str]) -> None:
        """Show the figures of a finished epoch."""
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update((epoch + 1) * self._steps - self._bar.n)
        else:
            shown = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self._stage} {epoch + 1}/{self._epochs}  {shown}", flush=True)
