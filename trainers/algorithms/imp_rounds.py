"""The files that rounds of iterative magnitude pruning write, and resuming from another run's rounds.

`imp` calls `first_round` once, and `keep_round` after every round. In the run folder, `rounds/` then has
`round_NNN.safetensors` (a ticket file with the round's trained weights), `rewind.safetensors` (the weights to rewind
to) and `rounds.csv` (density and accuracies in percent, one line a round).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from args_helper import Config
from models.masking import plain_state, prunable_parameters
from models.state_files import load_weights, read_state, unwrapped
from trainers.tickets.file import read_ticket
from trainers.tickets.format import write_stored
from trainers.tickets.ticket import Ticket
from trainers.training.position import validate_position
from utils.distributed.collectives import rank_zero_only
from utils.errors import UserError
from utils.files import load_tensors, write_atomic, write_csv
from utils.masks import all_kept
from utils.run.checkpoints import checkpoint_path
from utils.run.run import Run

REWIND_STEP = 1000
SHARE_OF_SHORT_ROUNDS = 0.05
SNAPSHOT = "rewind.safetensors"


def rewind_step(config: Config, steps: int) -> int:
    """The optimizer step of round 0 to rewind to; by default 1000, or 5% of a shorter round.

    Args:
        config: `imp_rewind_iter`.
        steps: number of steps in round 0.

    Raises:
        UserError: the given step lies beyond round 0.
    """
    asked = config.imp_rewind_iter
    if asked is None:
        return REWIND_STEP if steps >= REWIND_STEP else round(SHARE_OF_SHORT_ROUNDS * steps)
    if asked > steps:
        raise UserError(
            f"imp_rewind_iter {asked} lies beyond round 0, which has {steps} steps ({config.iter_period} epochs, "
            "iter_period); give at most that, or leave it out"
        )
    return asked


# ---- the files of a round ------------------------------------------------------------------------------------------


@rank_zero_only
def keep_round(run: Run, number: int, ticket: Ticket, rewound: dict[str, Tensor], config: Config) -> None:
    """Write a finished round's network and masks, the table of all rounds so far, and (once) the rewind snapshot.

    Args:
        run: whose folder they go to.
        number: of the round.
        ticket: the round's masks and trained network.
        rewound: the snapshot.
        config: its options of the network go into the ticket's header.
    """
    folder = run.folder / "rounds"
    lines = [
        {
            "round": one,
            "weights_remaining_percent": rows[-1]["model_sparsity"],
            "test_acc": rows[-1]["test_acc"],
            "val_acc": rows[-1]["val_acc"],
        }
        for one in range(number + 1)
        if (rows := run.rows(f"search/round_{one}"))
    ]
    about = {"options": config.of_network(), **lines[-1]}
    write_stored(folder / f"round_{number:03d}.safetensors", ticket, about)
    keep_snapshot(run, rewound)
    write_csv(folder / "rounds.csv", lines)


@rank_zero_only
def keep_snapshot(run: Run, rewound: dict[str, Tensor]) -> None:
    """Write the weights to rewind to, once; none if they are not known yet."""
    path = run.folder / "rounds" / SNAPSHOT
    if rewound and not path.exists():
        write_atomic(path, save({name: value.cpu().contiguous() for name, value in rewound.items()}))


def last_values(trained: Ticket, begun: Ticket) -> dict[str, Tensor]:
    """Name -> the weights after a round, the pruned ones with the values that they had when they were pruned.

    A trained network has zeros in their places, from which a control network with permuted masks could not begin.

    Args:
        trained: the network after the round.
        begun: what the round began with, made in the same way.
    """
    return {name: trained.state[name].where(mask, begun.state[name]) for name, mask in begun.masks.items()}


# ---- the first round of a run --------------------------------------------------------------------------------------


def first_round(net: nn.Module, config: Config, run: Run, snapshot_step: int) -> tuple[int, Ticket, dict[str, Tensor]]:
    """The first round to train, the subnetwork it trains, and the weights to rewind to (empty: not known yet).

    With `imp_resume_round`, that round comes from another run, finished or up to a stored epoch and step. Its
    checkpoint becomes this run's, so that `train` finds the stage begun or finished.

    Args:
        net: plain, with its weights drawn; with `imp_resume_round` or `imp_rewind_model` it gets weights from files.
        config: `imp_resume_*` and `imp_rewind_model`.
        run: where the other run's checkpoint is stored.
        snapshot_step: the step of round 0 after which this run takes the weights to rewind to.

    Returns:
        The number of the round; its ticket; parameter name -> weights to rewind to, on the network's device.

    Raises:
        UserError: the run, round or step that `imp_resume_*` name does not exist.
    """
    fresh = Ticket(plain_state(net), all_kept(prunable_parameters(net)))
    number, device = config.imp_resume_round, next(net.parameters()).device
    rewound: dict[str, Tensor] = {}
    if config.imp_rewind_model:
        load_weights(net, read_state(config.imp_rewind_model), config.imp_rewind_model)
        rewound = {name: weight.detach().clone() for name, weight in prunable_parameters(net).items()}
    if number < 0:
        return 0, fresh, rewound
    folder, stage = Path(config.imp_resume_folder), f"search/round_{number}"
    begun, own = run.load(stage), run.folder / "rounds" / SNAPSHOT
    # Once round 0 goes on here, this run takes its own weights, whatever the other run has written meanwhile.
    is_own = own.exists() or (begun is not None and number == 0)
    snapshot = own if is_own else folder / "rounds" / SNAPSHOT
    if not rewound and (stored_snapshot := _stored_snapshot(snapshot)):
        rewound = {name: value.to(device) for name, value in stored_snapshot.items()}
        load_weights(net, {**net.state_dict(), **rewound}, snapshot)  # checks that they fit
    stored = validate_position(_stored_position(folder, config) if begun is None else begun, 0, str(folder))
    if number < config.imp_prunings and not config.imp_no_rewind:
        taken = rewound or stored["training"].get("snapshot")
        if not taken and (number or stored["training"].get("steps", 0) >= snapshot_step):
            raise UserError(
                f"there is no {snapshot} to rewind to after round {number}; give imp_rewind_model, or imp_no_rewind"
            )
        if taken and config.imp_rewind_iter is not None and not config.imp_rewind_model:
            place = snapshot if rewound else folder
            warnings.warn(f"imp_rewind_iter is not used: later rounds rewind to the weights in {place}", stacklevel=2)
    load_weights(net, unwrapped(stored), folder)
    state, begun_with = plain_state(net), fresh.state
    if number == config.imp_prunings or config.imp_no_rewind:  # else nothing more comes of what this round began with
        before = _begun_with(number, fresh.to(torch.device("cpu")), folder, run)
        begun_with = {name: value.to(device) for name, value in before.items()}
        begun_with |= rewound if number and not config.imp_no_rewind else {}
    if begun is None:
        keep_snapshot(run, rewound)
        run.save(stage, stored)
    # Pruned weights are exactly 0 at every step, the others never.
    return number, Ticket(begun_with, {name: state[name] != 0 for name in fresh.masks}), rewound


@rank_zero_only
def _begun_with(number: int, fresh: Ticket, folder: Path, run: Run) -> dict[str, Tensor]:
    """The network that a round of another run began with, before it was rewound; that run's rounds are copied.

    Args:
        number: of the round.
        fresh: what round 0 begins with, on the CPU, as the result is.
        folder: the other run's.
        run: this run.
    """
    begun = fresh
    for one in range(number):
        own, theirs = (place / "rounds" / f"round_{one:03d}.safetensors" for place in (run.folder, folder))
        if not own.exists():
            if not theirs.is_file():
                raise UserError(f"there is no {theirs}, from which round {number} of that run began")
            write_atomic(own, theirs.read_bytes())
        trained = read_ticket(own)[0]
        begun = Ticket({**trained.state, **last_values(trained, replace(begun, masks=trained.masks))}, trained.masks)
    return {name: begun.state[name] for name in fresh.state}  # in the order of the network


@rank_zero_only
def _stored_snapshot(path: Path) -> dict[str, Tensor]:
    return dict(read_state(path)) if path.exists() else {}


@rank_zero_only
def _stored_position(folder: Path, config: Config) -> dict[str, Any]:
    """The checkpoint of another run's round: at its end, or at `imp_resume_epoch` and step `imp_resume_iter`."""
    number = config.imp_resume_round
    last = checkpoint_path(folder, f"search/round_{number}")
    wanted = None
    if config.imp_resume_epoch >= 0 or config.imp_resume_iter >= 0:
        wanted = (max(0, config.imp_resume_epoch), max(0, config.imp_resume_iter))
    there = []
    for path in sorted(last.parent.glob(f"{last.stem}.pt")) + sorted(last.parent.glob(f"{last.stem}_epoch_*.pt")):
        stored = validate_position(load_tensors(path), 0, str(path))
        at = (stored["epoch"], stored["step"])
        if at == wanted or (wanted is None and stored["done"]):
            return stored
        there.append(f"epoch {at[0]} step {at[1]}")
    asked = "its end" if wanted is None else f"epoch {wanted[0]} step {wanted[1]}"
    raise UserError(
        f"{folder} has no checkpoint of round {number} at {asked}; of that round it has "
        f"{', '.join(there) or 'none'} (save_every and ckpt_at_fixed_epochs keep more)"
    )
