"""A notebook's cells: mine a gem, look at it, take its ticket to another training. Run as a test, in its own folder."""

# %% A run, as `python main.py --config configs/quickstart.yml --width 0.25 ...` would be; here a very short one.
from pathlib import Path

import torch

from trainers import load_ticket, mine

PROJECT = Path(__file__).resolve().parent.parent
run = mine(
    PROJECT / "configs/quickstart.yml",
    width=0.25, epochs=6, fine_tune_epochs=2, target_sparsity=20, lmbda=1e-4, lr=0.05, threads=1,
)  # fmt: skip

# %% What it came to. `pandas.DataFrame(run.metrics)` makes a table of the epochs.
print(run.summary["test_acc_before_finetune"], run.summary["test_acc_after_finetune"])
best = max(run.metrics, key=lambda row: row["val_acc"])
print(f"best on validation: {best['val_acc']:.1f}% in epoch {best['epoch']} of {best['phase']}")

# %% The ticket: which weights remain, layer by layer.
for name, mask in run.ticket.masks.items():
    print(f"{name:<24} {int(mask.sum()):>6} of {mask.numel()}")

# %% The trained network is an ordinary PyTorch model.
with torch.no_grad():
    print(run.model(torch.zeros(1, 1, 8, 8)).softmax(1))

# %% The figure of the run, and the same call again: it finds the run finished.
figure = run.curves
again = mine(
    PROJECT / "configs/quickstart.yml",
    width=0.25, epochs=6, fine_tune_epochs=2, target_sparsity=20, lmbda=1e-4, lr=0.05, threads=1,
)  # fmt: skip

# %% Someone else's network takes up the ticket: weights, pruned ones 0, and masks to train it under.
masks = load_ticket(run.folder / "ticket.safetensors", run.model)
