"""TensorBoard logs of a stage beyond its table: how the mask changes, and whether data loading keeps up.

The loop calls `show` once per epoch, after prunings and before the checkpoint. Only `Timed` runs within an epoch,
around the batches; it reads the host's clock and never waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from data.normalise import Batch
from trainers.training.epoch_row import TAGS
from trainers.training.training import Training
from utils.run.run import Row, Run

LAYOUT = {
    "search": {
        "density of the layers (%)": ["Multiline", ["layers/.*"]],
        "accuracy before and after rounding (%)": ["Multiline", ["accuracy/test", "accuracy/test_before_rounding"]],
        "loss and regularisation": ["Multiline", ["loss/.*"]],
        "weights that changed side": ["Multiline", ["mask/.*"]],
    }
}
"""Charts with several lines, on TensorBoard's page of custom scalars."""


def show(run: Run, stage: str, training: Training, row: Row, speed: Mapping[str, float]) -> None:
    """Write an epoch to TensorBoard.

    Args:
        run: to log to.
        stage: of the epoch.
        training: what was trained; its `describe` may add to the log.
        row: of the table.
        speed: as returned by `Timed.throughput`.
    """
    scalars, histograms = training.describe()
    run.log(stage, row["epoch"], {**_metrics(row), **scalars, **speed}, histograms)
    if stage == "search":  # in other stages the density is constant
        rows = [*(one for one in run.rows(stage) if one["phase"] == stage), row]
        run.log_against(stage, [_against_density(one) for one in rows])


def _metrics(row: Row) -> dict[str, float]:
    return {tag: row[name] for name, tag in TAGS.items() if row[name] is not None}


def _against_density(row: Row) -> tuple[int, dict[str, float]]:
    accuracies = {tag: value for tag, value in _metrics(row).items() if tag.startswith("accuracy/")}
    return round(1000 * row["model_sparsity"]), {f"against_density/{tag}": one for tag, one in accuracies.items()}


class MaskMoves:
    """Counts how many weights switch on or off between epochs and since the last pruning."""

    def __init__(self) -> None:
        self._epoch_before: Tensor | None = None
        self._at_pruning: Tensor | None = None

    def look(self, mask: Tensor, pruned: bool) -> dict[str, float]:
        """Hamming distances, in weights, to the masks of the epoch before and right after the last pruning.

        Args:
            mask: (N,) bool, at the end of an epoch.
            pruned: whether the epoch ended in a pruning; its distance is still to the pruning before.

        Returns:
            Scalars by tag; none where there is no earlier mask yet.
        """
        earlier = {"mask/changed_in_epoch": self._epoch_before, "mask/distance_to_last_pruning": self._at_pruning}
        distances = {tag: float((mask != other).sum()) for tag, other in earlier.items() if other is not None}
        self._epoch_before = mask.clone()
        if pruned:
            self._at_pruning = self._epoch_before
        return distances

    def state(self) -> dict[str, Any]:
        """The masks of the epoch before and after the last pruning."""
        return {"epoch_before": self._epoch_before, "at_pruning": self._at_pruning}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state` returned."""
        masks = {name: None if mask is None else mask.to(device) for name, mask in state.items()}
        self._epoch_before, self._at_pruning = masks["epoch_before"], masks["at_pruning"]


class Timed:
    """Iterates over batches and measures the seconds that the host waits for them.

    Args:
        batches: this rank's part of each batch of an epoch.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._started = time.perf_counter()
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        asked = time.perf_counter()
        for batch in self._batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.waited += time.perf_counter() - asked

    def throughput(self, images: int) -> dict[str, float]:
        """Images per second since the start, and the share of that time spent waiting, in percent.

        Args:
            images: in the whole batches, of all ranks: their parts differ in size.
        """
        passed = time.perf_counter() - self._started
        return {
            "throughput/images_a_second": images / passed,
            "throughput/waiting_for_data_percent": 100.0 * self.waited / passed,
        }
