"""`--compare_rounding`: compare masks drawn with the scores as probabilities to the rounded mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from args_helper import Config
from trainers.analysis.evaluate import LABELS, judged, spread
from trainers.analysis.network_file import opened_network, read_network
from trainers.results.run_folder import free_file
from trainers.training.batchnorm import renew_statistics
from trainers.training.loop import evaluate
from trainers.training.rounding import naive_mask, rounded_masks
from utils.errors import UserError
from utils.files import write_csv
from utils.rng import derive_rng


def compare_rounding(config: Config) -> None:
    """Compare `num_test` masks drawn from the scores in `pretrained`, Bernoulli(s) · f, to the naive 1[s > t] · f.

    Write `compare_rounding.csv` beside the config's trials: one row for the naive mask and one per drawn mask.
    Accuracies use the file's BatchNorm statistics, as in a search with `round: prob`; `test_acc_renewed` uses
    statistics estimated anew for each mask. Distances count the weights (without biases) that only one of two masks
    keeps.

    Raises:
        UserError: the file cannot be used, or holds no scores.
    """
    config, data, net = opened_network(config)
    file = read_network(net, config.pretrained)
    if file.flat is None:
        raise UserError(
            f"compare_rounding: there are no scores in {config.pretrained}; they are in a search's checkpoint, such as "
            "results/NAME/trial_1/checkpoints/search.pt"
        )
    rule, by_chance = file.rule(config), config.model_copy(update={"round": "prob", "noise": False})
    seed = config.effective_seed
    naive = naive_mask(file.flat, rule, file.flat.scores.detach())
    drawn = rounded_masks(file.masked, file.flat, rule, by_chance, derive_rng(seed, "compare_rounding", "draws"))
    weights = file.flat.segments[0]
    rows = []
    for draw, mask in enumerate([naive, *drawn]):
        apart = int((mask[weights] != naive[weights]).sum())
        row = {"draw": draw or "naive", **judged(net, file, mask, data)}
        # The file's statistics fit the rounded mask; a drawn mask shows its full accuracy only with its own.
        renew_statistics(net, data.train.epoch(derive_rng(seed, "compare_rounding", "batches")))
        row["test_acc_renewed"] = evaluate(net, data.test)
        rows.append({**row, "hamming": apart, "hamming_percent": 100.0 * apart / weights.stop})
    table = free_file(config, "compare_rounding.csv")
    write_csv(table, rows)
    print(_rounding_screen(config, rows, table))


def _rounding_screen(config: Config, rows: Sequence[dict[str, Any]], table: Path) -> str:
    naive, drawn = rows[0], rows[1:]
    several = f"{len(drawn)} draws: mean ± standard deviation" if len(drawn) > 1 else "1 draw (num_test: more)"
    lines = [
        f"{config.arch} on {config.dataset}: rounding the scores in {config.pretrained}",
        f"  {'':<21}{'naive':>8}    by chance, {several}",
    ]
    for name, label in LABELS.items():
        if naive[name] is not None:
            lines.append(f"  {label:<21}{naive[name]:7.2f}%    {spread([row[name] for row in drawn])}%")
    apart, percent = (spread([row[name] for row in drawn]) for name in ("hamming", "hamming_percent"))
    lines.append(f"  {'Hamming distance':<21}{0:>8}    {apart} weights, {percent}%")
    return "\n".join([*lines, f"  {'table':<21}{table}"])
