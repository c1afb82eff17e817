"""Loads state_dicts from files: this tool's checkpoints, the published code's, or any network's; it runs no code.

`pretrained`, tickets, rounds of imp and the analyses load through it. Weights and scores are loaded apart, because a
plain network has no scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.masking import SCORE_NAMES, plain_state
from utils.errors import UserError, first_of
from utils.files import load_tensors

State = dict[str, Tensor]


def read_state(path: str | Path) -> State:
    """Read a state_dict from a `.safetensors` file or a `torch.save` file, either bare or inside a checkpoint.

    A `module.` prefix of all names (DataParallel) is removed, and so are the one-element `bias_scores` and `bias_flag`
    of published layers without a bias.

    Returns:
        Parameter or buffer -> tensor on the CPU; at least one.

    Raises:
        UserError: the file does not exist, has another format, needs code to load, or holds no tensors.
    """
    return read_search(path)[0]


def read_search(path: str | Path) -> tuple[State, float | None]:
    """Read a state_dict as `read_state` does, and the rounding threshold of a search's checkpoint if it moved."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except (OSError, SafetensorError, OverflowError, RuntimeError, TypeError) as error:
        raise UserError(f"cannot read a state_dict from {path}: {error}") from error
    except UserError as error:
        raise UserError(f"cannot read a state_dict from {path}: the file is no such thing, or damaged") from error
    state = unwrapped(found)
    if not state:
        raise UserError(f"{path} holds no state_dict: a mapping of names to tensors is expected")
    training = found.get("training") if isinstance(found, Mapping) else None
    threshold = training.get("threshold") if isinstance(training, Mapping) else None
    moved = threshold if isinstance(threshold, float) else None
    return {name: value for name, value in state.items() if not _is_dummy(name, state)}, moved


def as_safetensors(network: nn.Module) -> bytes:
    """Return the content of a safetensors file with a network's state_dict, under every name that a tensor has."""
    return save({name: value.contiguous().clone() for name, value in network.state_dict().items()})


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str | Path, adapt: bool = True) -> None:
    """Load weights and BatchNorm into a plain network; scores and flags in the state are ignored.

    If `adapt` and only the number of classes differs, the last layer keeps its drawn weights, with a warning.

    Args:
        network: plain, on any device.
        state: every name of the network's state_dict, and no other but scores and flags.
        source: names the file, for messages.
        adapt: whether another number of classes is allowed.

    Raises:
        UserError: any other name or shape does not fit; the network is unchanged.
    """
    own = network.state_dict()
    weights = {name: value for name, value in state.items() if name in own or not _is_score(name)}
    if _load(network, weights, source, adapt):
        warnings.warn(
            f"{source} is of another number of classes: the last layer stays as it was drawn, all else is taken over",
            stacklevel=2,
        )


def load_scores(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> bool:
    """Load scores and flags, if the state has any, into a masked network; as `load_weights`, without the warning.

    Args:
        network: masked, on any device.
        state: weights in it are ignored.
        source: names the file, for messages.

    Returns:
        Whether the state has scores.

    Raises:
        UserError: a name or a shape does not fit; the network is unchanged.
    """
    own = plain_state(network)
    scores = {name: value for name, value in state.items() if _is_score(name) and name not in own}
    if not scores:
        return False
    _load(network, {**own, **scores}, source)
    return True


def _load(network: nn.Module, state: Mapping[str, Tensor], source: str | Path, adapt: bool = True) -> bool:
    """Load a state that fits, except perhaps in the number of classes; return whether the last layer was kept."""
    own = network.state_dict()
    problems = _misfits(own, state)
    adapted = {**state, **_last_layer(network, state)} if problems and adapt else state
    if adapted is not state and not _misfits(own, adapted):
        network.load_state_dict(adapted)
        return True
    if problems:
        raise UserError(f"{source} does not fit the network: {first_of(problems, between='; ')}")
    network.load_state_dict(state)
    return False


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not of this network" for name in state if name not in own]
    return problems + [
        f"{name} has shape {tuple(state[name].shape)} where {tuple(value.shape)} is needed"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]


def _last_layer(network: nn.Module, state: Mapping[str, Tensor]) -> State:
    """Return the network's entries for the last layer's misfits, if only the number of classes differs; else {}."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    own = {name: value for name, value in network.state_dict().items() if name.rpartition(".")[0] in layers[-1:]}
    others = {name: value for name, value in own.items() if name in state and state[name].shape != value.shape}
    # The misfits have to be all of weight and bias, or all of scores and flags, with a single number of classes.
    complete = all(name in others for name in own if _is_score(name) in map(_is_score, others))
    alike = all(state[name].shape[1:] == value.shape[1:] for name, value in others.items())
    return others if complete and alike and len({state[name].shape[:1] for name in others}) == 1 else {}


def unwrapped(found: object) -> State:
    """Find the state_dict in a file's content, bare or inside a checkpoint; return {} if there is none."""
    for key in ("state_dict", "training", "network"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(map(_is_entry, found, found.values())):
        return {}
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _is_entry(name: object, value: object) -> bool:
    """Return whether this is a name and an ordinary dense CPU tensor."""
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    return value.device.type == "cpu" and value.layout == torch.strided and not (value.is_quantized or value.is_nested)


def _is_score(name: str) -> bool:
    return name.rpartition(".")[2] in SCORE_NAMES


def _is_dummy(name: str, state: Mapping[str, Tensor]) -> bool:
    layer, _, kind = name.rpartition(".")
    return kind in ("bias_scores", "bias_flag") and f"{layer}.bias" not in state
