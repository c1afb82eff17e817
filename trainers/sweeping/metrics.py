"""Judge a run of a search: validation accuracies and early end while it runs, density when it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from args_helper import Config
from trainers.sweeping.units import Unit
from trainers.training.epoch_row import read_epochs

BELOW = 3
"""Epochs in a row below the median that end a run early: a single one, after a pruning, says little."""


def accuracies(unit: Unit, metric: str) -> list[float]:
    """Return validation accuracy, in percent, after each epoch so far of the phases that lead to the metric.

    Args:
        unit: whose run is going on in another process, or has ended.
        metric: `val_acc_before_finetune`, for which only epochs of the search count, or `val_acc_after_finetune`.

    Returns:
        One value per epoch, [0, 100]; empty if the run has written no table.
    """
    phases = ("search",) if metric == "val_acc_before_finetune" else ("search", "finetune")
    rows, _ = read_epochs(unit.folder / unit.asked.results_filename)
    return [row.val_acc for row in rows if row.phase.partition("/")[0] in phases and row.val_acc is not None]


def misses_target(summary: Mapping[str, Any], config: Config, tolerance: float | None) -> str | None:
    """Say how far a ticket exceeds its target density; None: it does not.

    Args:
        summary: of its run.
        config: with the target. Of an algorithm that aims at none, it is a limit only if it was given.
        tolerance: the fraction by which the target may be exceeded; None: without limit.
    """
    remaining, target = summary["weights_remaining_percent"], config.target_sparsity
    is_limit = config.has_target or ("target_sparsity" in config.model_fields_set and not config.algorithm.is_dense)
    if tolerance is None or not is_limit or remaining <= target * (1 + tolerance):
        return None
    return f"{remaining:.3g}% of the weights remain where {target:g}% were asked for"


def is_below_median(values: Mapping[int, float], finished: Sequence[Mapping[int, float]], enough: int) -> bool:
    """Whether a run's last epochs lie below the median of the finished runs at the same epochs.

    Optuna's own rule takes the best value so far; as a search prunes, that value comes from an early, denser epoch.

    Args:
        values: epoch -> accuracy, of the run; the last `BELOW` count.
        finished: the same for every finished run.
        enough: required number of finished runs at an epoch.
    """
    last = sorted(values)[-BELOW:]
    others = {epoch: [one[epoch] for one in finished if epoch in one] for epoch in last}
    return len(last) == BELOW and all(len(at) >= enough and values[epoch] < median(at) for epoch, at in others.items())
