"""The trained network of a finished run, loaded from the run's folder.

The notebook and the export start from it, and a fine-tuning may learn from it as its teacher.
"""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

from torch import nn

from args_helper import Config, parse_args
from data.spec import DataSpec
from models.build import build_model
from models.state_files import State, load_weights, read_state
from trainers.tickets.file import TICKET, read_ticket
from trainers.tickets.format import read_stored
from trainers.tickets.ticket import Ticket
from utils.errors import UserError
from utils.files import read_json
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


def trained(folder: Path, config: Config, spec: DataSpec | None = None, like: nn.Module | None = None) -> Trained:
    """Load the network of the run in a folder.

    Args:
        folder: of a finished run.
        config: its options.
        spec: of its data; by default, what the data set declares.
        like: a plain network of its architecture, to copy instead of building one.

    Raises:
        UserError: the weights are missing or do not fit.
    """
    fresh = config.model_copy(update={"pretrained": None, "weights": None, "device": "cpu"})
    net = build_model(fresh, spec) if like is None else deepcopy(like).cpu()
    ticket = read_stored(folder / TICKET).ticket
    state = _trained_state(folder, ticket)
    if state is None:  # else no weights are needed that this machine may draw otherwise
        ticket, _ = read_ticket(folder / TICKET)
    masks = ticket.untrained if state is None else ticket.masks
    load_weights(net, masked_state(ticket.state if state is None else state, masks), folder, adapt=False)
    return Trained(net.eval().requires_grad_(False), masks, state is not None)


def teacher_of(folder: str, spec: DataSpec, student: nn.Module) -> nn.Module:
    """Load the network of a finished run as a teacher of another network.

    It may have any architecture. One of a user's file has to be the student's own, because a run folder, which may be
    anyone's, must not choose which code runs.

    Args:
        folder: of the run.
        spec: of the data that the other network is trained on.
        student: the other network, plain.

    Returns:
        The network as in `Trained`.

    Raises:
        UserError: there is no such run, it is not finished, or its images or classes are others.
    """
    try:
        config = parse_args(["--resume", folder])
        if not (Path(folder) / "summary.json").is_file():
            raise UserError("the run is not finished")
        told = read_json(Path(folder) / "environment.json")
        task = told.get("task", spec.task) if isinstance(told, dict) else None  # missing in runs of earlier versions
        if task != spec.task:
            raise UserError(f"it was trained on {task}, and these are {spec.task}")
        return trained(Path(folder), config, spec, student if ".py:" in config.arch else None).network
    except UserError as error:
        raise UserError(f"teacher {folder}: {str(error).removeprefix(f'--resume {folder}: ')}") from error


def _trained_state(folder: Path, ticket: Ticket) -> State | None:
    """The weights at the end of the run's training; None if nothing was trained.

    Raises:
        UserError: they are missing.
    """
    summary = folder / "summary.json"
    said = read_json(summary)
    if not isinstance(said, dict) or "test_acc_after_finetune" not in said:
        raise UserError(f"{summary} is not the summary of a run")
    if said["test_acc_after_finetune"] is None:
        return None
    stored = checkpoint_path(folder, ticket.recipe.stage if ticket.recipe else "finetune")
    model = folder / "model.safetensors"
    there = [path for path in (stored, model) if path.is_file()]
    if not there:
        raise UserError(f"the trained weights are no longer there: neither {stored} nor {model}")
    for path in there[:-1]:
        with suppress(UserError):  # the other one has the same weights
            return read_state(path)
    return read_state(there[-1])
