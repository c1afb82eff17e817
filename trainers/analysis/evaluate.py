"""Measure the accuracy of networks and tickets in files, over random roundings of scores, without training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from models.masking import prunable_parameters
from models.state_files import State
from trainers.algorithms.from_file import ticket_for
from trainers.analysis.network_file import NetworkFile, opened_network, read_network
from trainers.training.loop import evaluate
from trainers.training.rounding import rounded_masks
from utils.masks import is_bias, masked_state, remaining, total
from utils.rng import derive_rng
from utils.run.run import Row

# ---- networks from files -------------------------------------------------------------------------------------------


def accuracies(net: nn.Module, state: State, data: Splits, percent: float) -> Row:
    """Measure test and validation accuracy in percent; the latter is None without a validation split.

    Args:
        net: plain; the state is loaded into it.
        state: to measure, its pruned weights already 0.
        data: whose test and val splits to measure on.
        percent: of the weights that remain, for the row.
    """
    net.load_state_dict(state)
    test, val = evaluate(net, data.test), evaluate(net, data.val)
    return {"test_acc": test, "val_acc": val, "weights_remaining_percent": percent}


def nonzero_percent(net: nn.Module, state: State) -> float:
    """Return the percentage of prunable weights (without biases) that are not 0 in a state.

    Args:
        net: of the state's architecture; it names the prunable weights.
        state: a kept weight that happens to be 0 counts as pruned.
    """
    weights = [state[name] for name in prunable_parameters(net) if not is_bias(name)]
    return 100.0 * sum(int(part.count_nonzero()) for part in weights) / sum(part.numel() for part in weights)


# ---- evaluate ------------------------------------------------------------------------------------------------------


def evaluate_network(config: Config) -> None:
    """Print the accuracy of the network in `pretrained`, or of the untrained `ticket`; nothing is stored.

    Raises:
        UserError: the file cannot be used.
    """
    config, data, net = opened_network(config)
    lines = _ticket_screen(net, config, data) if config.ticket else _network_screen(net, config, data)
    print("\n".join([f"{config.arch} on {config.dataset}: {config.ticket or config.pretrained}", *lines]))


def _ticket_screen(net: nn.Module, config: Config, data: Splits) -> list[str]:
    ticket = ticket_for(net, config, derive_rng(config.effective_seed, "ticket", "last layer"))
    kinds = {"ticket, untrained": ticket.masks}
    if ticket.gem and any(not bool((mask == ticket.gem[name]).all()) for name, mask in ticket.masks.items()):
        kinds = {"gem, untrained": ticket.gem, **kinds}
    lines = []
    for kind, masks in kinds.items():
        percent = 100.0 * remaining(masks) / total(masks)
        found = accuracies(net, masked_state(ticket.state, masks), data, percent)
        lines += [f"  {kind}", *_metrics([found], indent=4)]
    return lines


def _network_screen(net: nn.Module, config: Config, data: Splits) -> list[str]:
    file = read_network(net, config.pretrained)
    if file.flat is None:
        return _metrics([accuracies(net, file.state, data, nonzero_percent(net, file.state))])
    generator = derive_rng(config.effective_seed, "evaluate")
    masks = rounded_masks(file.masked, file.flat, file.rule(config), config, generator)
    rows = [judged(net, file, mask, data) for mask in masks]
    drawn = f", {len(rows)} draws: mean ± standard deviation" if len(rows) > 1 else ""
    return [f"  scores rounded by      {config.round}{drawn}", *_metrics(rows)]


def judged(net: nn.Module, file: NetworkFile, mask: Tensor, data: Splits) -> Row:
    """Measure the accuracies of a file's network under a mask, and the weights that remain, all in percent."""
    return accuracies(net, file.under(mask), data, 100.0 * file.flat.share(mask))


LABELS = {
    "test_acc": "test accuracy",
    "val_acc": "validation accuracy",
    "test_acc_renewed": "test, BatchNorm anew",
    "weights_remaining_percent": "weights remaining",
}
"""Metric -> its words on the screen."""


def _metrics(rows: Sequence[Row], indent: int = 2) -> list[str]:
    """Format one line per metric, averaged over the rows."""
    lines = []
    for name, label in LABELS.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            lines.append(f"{'':{indent}}{label:<{25 - indent}}{spread(values)}%")
    return lines


def spread(values: Sequence[float]) -> str:
    """Format the average of some values and, for several, their standard deviation."""
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{deviation}"
