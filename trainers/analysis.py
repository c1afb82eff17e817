"""What networks in files are worth: their accuracy, and what chance in rounding does to it. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from data import load_data
from data.loader import Splits
from models import build_model
from models.layers import Round
from models.masking import FlatScores, plain_state, prunable_parameters, to_masked
from models.pretrained import State, load_scores, load_weights, read_state
from trainers.algorithms.given import ticket_for
from trainers.compiling import allow_tf32
from trainers.folders import free_file, resolved
from trainers.loop import evaluate
from trainers.rounding import naive_mask, rounded_masks, share
from trainers.statistics import renew_statistics
from utils.errors import UserError
from utils.files import write_csv
from utils.masks import is_bias, masked_state, remaining, total
from utils.run import Row, derive_rng
from utils.tickets import is_ticket_file

if TYPE_CHECKING:
    from args_helper import Config

# ---- networks from files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkFile:
    """What a file holds of a network.

    Attributes:
        state: of the plain network, not multiplied by any mask.
        masked: a masked network with the file's scores and flags; None for a file without scores.
        flat: those scores and flags; None likewise.
    """

    state: State
    masked: nn.Module | None
    flat: FlatScores | None

    def under(self, factors: Tensor) -> State:
        """The state with the weights multiplied by (N + N_bias,) factors."""
        return masked_state(self.state, self.flat.split(factors))


def opened_network(config: Config) -> tuple[Splits, nn.Module]:
    """The data, and a plain network of the config's architecture, on the device; no file is loaded into it yet.

    Whatever the precision of a run, what it left is measured in single precision.
    """
    allow_tf32("fp32")
    data = load_data(config)
    return data, build_model(config.model_copy(update={"pretrained": None}), data.spec).to(config.torch_device)


def read_network(net: nn.Module, path: str) -> NetworkFile:
    """What the file holds, on the network's device.

    Args:
        net: plain; it takes up the file's weights and BatchNorm.
        path: a state_dict, or a checkpoint of a stage.

    Raises:
        UserError: the file cannot be read or does not fit the network, or its scores are no chances.
    """
    if is_ticket_file(Path(path)):
        raise UserError(f"{path} is a ticket, not a network: it can be evaluated, by --evaluate --ticket {path}")
    state = read_state(path)
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
    return NetworkFile(plain_state(net), masked, flat)


def accuracies(net: nn.Module, state: State, data: Splits) -> Row:
    """Test and validation accuracy in percent; the latter None where nothing was held out."""
    net.load_state_dict(state)
    return {"test_acc": evaluate(net, data.test), "val_acc": evaluate(net, data.val)}


def nonzero_percent(net: nn.Module, state: State) -> float:
    """The percentage of the prunable weights (not the biases) that are not 0 in a state."""
    weights = [state[name] for name in prunable_parameters(net) if not is_bias(name)]
    return 100.0 * sum(int(part.count_nonzero()) for part in weights) / sum(part.numel() for part in weights)


# ---- evaluate ------------------------------------------------------------------------------------------------------


def evaluate_network(config: Config) -> None:
    """Print what the network in `pretrained`, or the untrained `ticket`, is worth. It leaves nothing behind.

    Raises:
        UserError: the file cannot be used.
    """
    config = resolved(config)
    data, net = opened_network(config)
    lines = _ticket_screen(net, config, data) if config.ticket else _network_screen(net, config, data)
    print("\n".join([f"{config.arch} on {config.dataset}: {config.ticket or config.pretrained}", *lines]))


def _ticket_screen(net: nn.Module, config: Config, data: Splits) -> list[str]:
    ticket = ticket_for(net, Path(config.ticket), derive_rng(config.effective_seed, "ticket", "last layer"))
    kinds = {"ticket, untrained": ticket.masks}
    if ticket.gem and any(not bool((mask == ticket.gem[name]).all()) for name, mask in ticket.masks.items()):
        kinds = {"gem, untrained": ticket.gem, **kinds}
    lines = []
    for kind, masks in kinds.items():
        found = accuracies(net, masked_state(ticket.state, masks), data)
        found["weights_remaining_percent"] = 100.0 * remaining(masks) / total(masks)
        lines += [f"  {kind}", *_figures([found], indent=4)]
    return lines


def _network_screen(net: nn.Module, config: Config, data: Splits) -> list[str]:
    file = read_network(net, config.pretrained)
    if file.flat is None:
        found = accuracies(net, file.state, data)
        return _figures([{**found, "weights_remaining_percent": nonzero_percent(net, file.state)}])
    rule = Round(config.quantize_threshold)
    masks = rounded_masks(file.masked, file.flat, rule, config, derive_rng(config.effective_seed, "evaluate"))
    rows = [_judged(net, file, mask, data) for mask in masks]
    drawn = f", {len(rows)} draws: mean ± standard deviation" if len(rows) > 1 else ""
    return [f"  scores rounded by      {config.round}{drawn}", *_figures(rows)]


def _judged(net: nn.Module, file: NetworkFile, mask: Tensor, data: Splits) -> Row:
    percent = 100.0 * share(file.flat, mask)
    return {**accuracies(net, file.under(mask), data), "weights_remaining_percent": percent}


_LABELS = {
    "test_acc": "test accuracy",
    "val_acc": "validation accuracy",
    "test_acc_renewed": "test, BatchNorm anew",
    "weights_remaining_percent": "weights remaining",
}


def _figures(rows: Sequence[Row], indent: int = 2) -> list[str]:
    """A line a figure, over the rows."""
    lines = []
    for name, label in _LABELS.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            lines.append(f"{'':{indent}}{label:<{25 - indent}}{spread(values)}%")
    return lines


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are several."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{deviation}"


# ---- rounding ------------------------------------------------------------------------------------------------------


def compare_rounding(config: Config) -> None:
    """Compare `num_test` masks drawn from the scores in `pretrained`, Bernoulli(s) · f, to the naive 1[s > t] · f.

    Leaves `compare_rounding.csv`, a row the naive mask and a row a draw, beside the config's trials. Accuracies are
    under the file's BatchNorm statistics, as in a search with `round: prob`; `test_acc_renewed` is under statistics
    estimated anew for each mask. Distances are numbers of weights (biases left out) that only one of two masks keeps.

    Raises:
        UserError: the file cannot be used, or holds no scores.
    """
    config = resolved(config)
    data, net = opened_network(config)
    file = read_network(net, config.pretrained)
    if file.flat is None:
        raise UserError(
            f"compare_rounding: there are no scores in {config.pretrained}; they are in a search's checkpoint, such as "
            "results/NAME/trial_1/checkpoints/search.pt"
        )
    rule, by_chance = Round(config.quantize_threshold), config.model_copy(update={"round": "prob", "noise": False})
    seed = config.effective_seed
    naive = naive_mask(file.flat, rule, file.flat.scores.detach())
    drawn = rounded_masks(file.masked, file.flat, rule, by_chance, derive_rng(seed, "compare_rounding", "draws"))
    weights, train = file.flat.segments[0], data.train.unaugmented()
    rows = []
    for draw, mask in enumerate([naive, *drawn]):
        apart = hamming(mask[weights], naive[weights])
        row = {"draw": draw or "naive", **_judged(net, file, mask, data)}
        # The file's statistics are the rounded mask's: what a drawn one is worth by itself shows only with its own.
        renew_statistics(net, train.epoch(derive_rng(seed, "compare_rounding", "batches")))
        row["test_acc_renewed"] = evaluate(net, data.test)
        rows.append({**row, "hamming": apart, "hamming_percent": 100.0 * apart / weights.stop})
    table = free_file(config, "compare_rounding.csv")
    write_csv(table, rows)
    print(_rounding_screen(config, rows, table))


def hamming(mask: Tensor, other: Tensor) -> int:
    """In how many places two masks differ."""
    return int((mask != other).sum())


def _rounding_screen(config: Config, rows: Sequence[dict[str, Any]], table: Path) -> str:
    naive, drawn = rows[0], rows[1:]
    several = f"{len(drawn)} draws: mean ± standard deviation" if len(drawn) > 1 else "1 draw (num_test: more)"
    lines = [
        f"{config.arch} on {config.dataset}: rounding the scores in {config.pretrained}",
        f"  {'':<21}{'naive':>8}    by chance, {several}",
    ]
    for name, label in _LABELS.items():
        if naive[name] is not None:
            lines.append(f"  {label:<21}{naive[name]:7.2f}%    {spread([row[name] for row in drawn])}%")
    apart, percent = (spread([row[name] for row in drawn]) for name in ("hamming", "hamming_percent"))
    lines.append(f"  {'Hamming distance':<21}{0:>8}    {apart} weights, {percent}%")
    return "\n".join([*lines, f"  {'table':<21}{table}"])
