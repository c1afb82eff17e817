"""Read networks from files: weights, and scores if the file holds any.

The checkpoint of a search by Gem-Miner holds scores in [0, 1]; that of a trained network holds none. The analyses make
masks of the scores by their own options.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from args_helper import Config
from data.load import Splits, load_data
from models.build import build_model
from models.layers import Round
from models.masking import FlatScores, plain_state, to_masked
from models.state_files import State, load_scores, load_weights, read_search
from trainers.results.run_folder import resolved
from trainers.tickets.format import is_ticket_file
from trainers.training.compile import allow_tf32
from utils.errors import UserError
from utils.masks import masked_state


@dataclass(frozen=True)
class NetworkFile:
    """The contents of a network file.

    Attributes:
        state: of the plain network, not multiplied by any mask.
        masked: a masked network with the file's scores and flags; None without scores in the file.
        flat: these scores and flags; None without scores in the file.
        threshold: of the rounding at that point of the search, if it moved.
    """

    state: State
    masked: nn.Module | None
    flat: FlatScores | None
    threshold: float | None = None

    def rule(self, config: Config) -> Round:
        """How the scores are rounded: at the search's own threshold if that moved, else at `quantize_threshold`."""
        return Round(config.quantize_threshold if self.threshold is None else self.threshold)

    def under(self, factors: Tensor) -> State:
        """Return the state with its weights multiplied by the factors, (N + N_bias,)."""
        return masked_state(self.state, self.flat.split(factors))


def opened_network(config: Config) -> tuple[Config, Splits, nn.Module]:
    """Return the config, resolved, the data, and a plain network on the device; no file is loaded yet.

    Networks are measured in single precision, whatever the precision of their run.
    """
    config = resolved(config)
    allow_tf32("fp32")
    data = load_data(config)
    net = build_model(config.model_copy(update={"pretrained": None}), data.spec)
    return config, data, net.to(config.torch_device)


def read_network(net: nn.Module, path: str) -> NetworkFile:
    """Load a file's weights into a network, and return all its contents, on the network's device.

    Args:
        net: plain; the file's weights and BatchNorm statistics are loaded into it.
        path: of a state_dict, or of a stage's checkpoint.

    Raises:
        UserError: the file cannot be read or does not fit the network, or its scores are not probabilities.
    """
    if is_ticket_file(Path(path)):
        raise UserError(f"{path} is a ticket, not a network: it can be evaluated, by --evaluate --ticket {path}")
    state, threshold = read_search(path)
    load_weights(net, state, path)
    masked = to_masked(deepcopy(net))
    if not load_scores(masked, state, path):
        return NetworkFile(plain_state(net), None, None)
    flat = FlatScores(masked)
    low, high = flat.scores.min().item(), flat.scores.max().item()
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"the scores in {path} reach from {low:.3g} to {high:.3g}: those of hc and hc_iter lie in [0, 1] at the "
            "end of every epoch (what another search has found is in its run's ticket.safetensors, for --evaluate "
            "--ticket; a search that was stopped within an epoch goes on by --resume)"
        )
    return NetworkFile(plain_state(net), masked, flat, threshold)
