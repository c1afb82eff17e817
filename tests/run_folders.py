"""Write run folders by hand, as finished and unfinished runs leave them."""

import json
from pathlib import Path
from typing import Any

from args_helper import config_of
from trainers.training.epoch_row import EpochRow

COLUMNS = ",".join(EpochRow.model_fields)
LAYERS = {"conv1": [8, 10], "fc": [2, 90]}
SPENT = {
    "epochs": 2, "steps": 4, "images": 100, "seconds": 1.5, "training_flops_dense": 3000, "training_flops_masked": 600,
    "peak_memory_bytes": 5000,
}  # fmt: skip


def make_run(folder: Path, after: float | None = 90.0, *, rows: int = 2, **options: Any) -> Path:
    """Write the folder of a run.

    Args:
        folder: of the run.
        after: test accuracy after fine-tuning; None: the run is unfinished.
        rows: of its table of epochs, half of them of the search.
        options: of its config; those that begin with `says_` are fields of its summary instead.
    """
    said = {name.removeprefix("says_"): options.pop(name) for name in list(options) if name.startswith("says_")}
    config = config_of(options, "a test")
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text(config.to_yaml())
    table = [f"{'search' if 2 * n < rows else 'finetune'},{n},0.1,,{50 + n},,{60 + n},1.5,0,{20 - n},0.2"
            for n in range(rows)]  # fmt: skip
    (folder / config.results_filename).write_text("\n".join([COLUMNS, *table, ""]))
    if after is not None:
        summary = {
            "config_hash": config.config_hash, "trial": config.trial_num, "classes": 10, "device": "cpu (1 thread)",
            "weights_total": 100, "weights_remaining_percent": config.target_sparsity, "layers": LAYERS,
            "effective_weights_remaining_percent": config.target_sparsity / 2, "test_acc_before_finetune": 30.0,
            "test_acc_after_finetune": after, "checks": {}, "dense": None,
            "cost": {"search": {**SPENT, "scoring_flops": 7}, "finetune": SPENT},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps({**summary, **said}))
    return folder


def make_trials(root: Path, name: str, accuracies: list[float], **options: Any) -> None:
    """Write a finished trial for each accuracy; `check_NAME=[accuracies]` adds a check."""
    checks = {key.removeprefix("check_"): options.pop(key) for key in list(options) if key.startswith("check_")}
    for number, accuracy in enumerate(accuracies, start=1):
        controls = {check: {"test_acc_after_finetune": control[number - 1]} for check, control in checks.items()}
        folder = root / name / f"trial_{number}"
        make_run(folder, accuracy, trial_num=number, name=name, says_checks=controls, **options)
