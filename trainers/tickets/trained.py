"""The trained network of a finished run, loaded from the run's folder.

The notebook and the export start from it, and a fine-tuning may learn from it as its teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from args_helper import Config, parse_args
from data import OF_FOLDERS
from data.load import declared_spec
from data.spec import DataSpec
from models.build import build_model
from models.state_files import State, load_weights, read_state
from trainers.tickets.file import TICKET, read_ticket
from trainers.tickets.format import read_stored
from trainers.tickets.ticket import Ticket
from utils.errors import UserError
from utils.files import load_tensors, read_json
from utils.masks import Masks, masked_state
from utils.run.checkpoints import checkpoint_path


class Trained(NamedTuple):
    """A run's network, plain, in evaluation mode, on the CPU.

    Attributes:
        network: pruned weights are 0.
        masks: of the weights that it keeps.
        is_trained: whether the ticket was trained; if not, the network is the gem as the search left it.
    """

    network: nn.Module
    masks: Masks
    is_trained: bool


def trained(folder: Path, config: Config, spec: DataSpec | None = None) -> Trained:
    """Load the network of the run in a folder.

    Args:
        folder: of a finished run.
        config: its options.
        spec: of its data; by default, what the data set declares.

    Raises:
        UserError: the weights are missing or do not fit.
    """
    net = build_model(config.model_copy(update={"pretrained": None, "weights": None, "device": "cpu"}), spec)
    ticket = read_stored(folder / TICKET).ticket
    state = _trained_state(folder, ticket)
    if state is None:  # else no weights are needed that this machine may draw otherwise
        ticket, _ = read_ticket(folder / TICKET)
    masks = ticket.untrained if state is None else ticket.masks
    load_weights(net, masked_state(ticket.state if state is None else state, masks), folder, adapt=False)
    return Trained(net.eval().requires_grad_(False), masks, state is not None)


def teacher_of(folder: str, spec: DataSpec) -> nn.Module:
    """Load the network of a finished run, of any architecture, as a teacher of another network.

    Args:
        folder: of the run.
        spec: of the data that the other network is trained on.

    Returns:
        The network as in `Trained`.

    Raises:
        UserError: there is no such run, it is not finished, or it has other classes.
    """
    try:
        config = parse_args(["--resume", folder])
        if not (Path(folder) / "summary.json").is_file():
            raise UserError("the run is not finished")
        if config.dataset not in OF_FOLDERS and declared_spec(config.dataset).classes != spec.classes:
            raise UserError(f"its network tells the classes of {config.dataset} apart, which are others")
        return trained(Path(folder), config, spec).network
    except UserError as error:
        raise UserError(f"teacher {folder}: {str(error).removeprefix(f'--resume {folder}: ')}") from error


def _trained_state(folder: Path, ticket: Ticket) -> State | None:
    """The weights at the end of the run's training; None if nothing was trained.

    Raises:
        UserError: they are missing.
    """
    if read_json(folder / "summary.json")["test_acc_after_finetune"] is None:
        return None
    stored = checkpoint_path(folder, ticket.recipe.stage if ticket.recipe else "finetune")
    model = folder / "model.safetensors"
    if stored.is_file():
        return load_tensors(stored)["training"]["network"]
    if model.is_file():
        return read_state(model)
    raise UserError(f"the trained weights are no longer there: neither {stored} nor {model}")
