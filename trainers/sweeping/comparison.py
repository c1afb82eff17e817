"""The table that compares experiments: one row each, with average and standard deviation over its trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from args_helper import Config
from trainers.checks.controls import CHECKS
from trainers.checks.verdict import Verdict
from trainers.results.trials import write_trials
from utils.files import write_atomic, write_csv
from utils.markdown import markdown_table

METRICS = {
    "weights_remaining_percent": "weights remaining (%)",
    "gem_percent": "gem (%)",
    "test_acc_before_finetune": "before fine-tuning",
    "test_acc_after_finetune": "after fine-tuning",
    "gap_to_dense": "below dense",
}


def write_comparison(folder: Path, experiments: Mapping[str, tuple[Path, Config]]) -> str:
    """Write `comparison.csv` and `comparison.md`, and return the text of the latter; every worker writes the same.

    A row has the keys `run`, `trials`, mean, sd and n of each of `METRICS` (percent; the gap in points), and for each
    check the fields of its verdict, None where it was not run.

    Args:
        folder: of the sweep.
        experiments: name -> the folder of one of its trials, and its options. Those without a finished trial have no
            row; without rows, nothing is written, and the text is empty.
    """
    rows, cells = [], []
    for name, (place, config) in experiments.items():
        trials = write_trials(place, config.config_hash)
        if not (count := len(trials["trials"])):
            continue
        spreads = {metric: trials["figures"][metric] for metric in METRICS}
        verdicts = {check: trials["checks"].get(check) or dict.fromkeys(Verdict._fields) for check in CHECKS}
        parts = {f"{of}_{part}": value for of, found in (spreads | verdicts).items() for part, value in found.items()}
        rows.append({"run": name, "trials": count, **parts})
        shown = [_spread(one, count) for one in spreads.values()]
        shown += [_verdict(one, count) for one in verdicts.values()]
        cells.append([name, *shown, str(count)])
    if not rows:
        return ""
    write_csv(folder / "comparison.csv", rows)
    heading = ["run", *METRICS.values(), *(f"ticket − {check}" for check in CHECKS), "trials"]
    text = markdown_table(heading, cells) + "\n"
    write_atomic(folder / "comparison.md", text)
    return text


def _spread(spread: Mapping[str, Any], trials: int) -> str:
    mean, sd, n = spread["mean"], spread["sd"], spread["n"]
    if mean is None:
        return "–"
    return (f"{mean:.2f} ± {sd:.2f}" if sd and sd >= 0.005 else f"{mean:.2f}") + _fewer(n, trials)


def _verdict(found: Mapping[str, Any], trials: int) -> str:
    if found["margin"] is None:
        return "–"
    return f"{found['margin']:+.2f}, {Verdict(**found).word}" + _fewer(found["trials"], trials)


def _fewer(n: int, trials: int) -> str:
    """The number of trials behind a cell, where it is not that of the row."""
    return "" if n == trials else f" (n = {n})"
