"""`--compare_tickets`: count the weights that tickets share, layer by layer, and that random masks would share."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from args_helper import Config
from trainers.results.run_folder import free_file
from trainers.tickets.format import read_stored
from utils.errors import UserError
from utils.files import write_csv
from utils.masks import Masks, is_bias
from utils.run.run import Row

WHOLE = "all layers"


def compare_tickets(config: Config) -> None:
    """Print the overlap of every pair of tickets in `compare_tickets`, and write `compare_tickets.csv`.

    Raises:
        UserError: a file is not a ticket, or the tickets belong to different networks.
    """
    masks = [(path, read_stored(Path(path)).ticket.masks) for path in config.compare_tickets]
    rows, screens = [], []
    for (one, first), (other, second) in combinations(masks, 2):
        found = overlap(first, second, f"{one} and {other}")
        rows += [{"one": one, "other": other, **row} for row in found]
        screens.append(_screen(one, other, found))
    table = free_file(config, "compare_tickets.csv")
    write_csv(table, rows)
    print("\n\n".join(screens))
    print(f"table: {table}")


def overlap(one: Masks, other: Masks, which: str) -> list[Row]:
    """Return one row per layer and one for all layers, without biases.

    `jaccard` is the number of weights that both masks keep over the number that either keeps. `by_chance` is the same
    for two independent random masks with these counts in every layer, computed from the expected number of shared
    weights: of n, masks with a and b kept share ab/n, so theirs is (ab/n) / (a + b − ab/n). Both are None where neither
    mask keeps any.

    Args:
        one, other: masks of the same network.
        which: names of the two tickets, for messages.

    Raises:
        UserError: the masks belong to different networks.
    """
    names = {**one, **other}
    wrong = [name for name in names if name not in one or name not in other or one[name].shape != other[name].shape]
    if wrong:
        raise UserError(f"{which} are tickets of different networks: they differ in {', '.join(wrong[:6])}")
    rows, expected = [], 0.0
    for name in one:
        if not is_bias(name):
            kept, theirs, size = int(one[name].sum()), int(other[name].sum()), one[name].numel()
            by_chance = kept * theirs / size
            expected += by_chance
            counts = (size, kept, theirs, int((one[name] & other[name]).sum()))
            rows.append(_row(name.removesuffix(".weight"), counts, by_chance))
    whole = tuple(sum(row[key] for row in rows) for key in ("weights", "kept_by_one", "kept_by_other", "kept_by_both"))
    return [*rows, _row(WHOLE, whole, expected)]


def _row(layer: str, counts: tuple[int, ...], expected: float) -> Row:
    size, one, other, both = counts
    return {
        "layer": layer, "weights": size, "kept_by_one": one, "kept_by_other": other, "kept_by_both": both,
        "jaccard": both / (one + other - both) if one + other else None,
        "by_chance": expected / (one + other - expected) if one + other else None,
    }  # fmt: skip


def _screen(one: str, other: str, rows: list[Row]) -> str:
    width = max(len(row["layer"]) for row in rows)
    lines = [
        f"A: {one}",
        f"B: {other}",
        f"  {'':<{width}}  {'weights':>11}  {'kept in A':>9}  {'in B':>9}  {'in both':>9}  {'Jaccard':>7}  by chance",
    ]
    for row in rows:
        shares = ["–" if row[name] is None else f"{row[name]:.4f}" for name in ("jaccard", "by_chance")]
        lines.append(
            f"  {row['layer']:<{width}}  {row['weights']:>11,}  {row['kept_by_one']:>9,}  {row['kept_by_other']:>9,}  "
            f"{row['kept_by_both']:>9,}  {shares[0]:>7}  {shares[1]:>9}"
        )
    return "\n".join(lines)
