"""The table that compares experiments: one row each, with average and standard deviation over its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from args_helper import Config
from trainers.checks.controls import CHECKS
from trainers.checks.verdict import Verdict
from trainers.results.trials import write_trials
from utils.files import write_atomic, write_csv
from utils.markdown import markdown_table
from utils.run.run import Row

METRICS = {
    "weights_remaining_percent": "weights remaining (%)",
    "gem_percent": "gem (%)",
    "test_acc_before_finetune": "before fine-tuning",
    "test_acc_after_finetune": "after fine-tuning",
    "gap_to_dense": "below dense",
}


def comparison_table(experiments: Mapping[str, tuple[Path, Config]]) -> list[Row]:
    """Return a row for every experiment that has a finished trial.

    Args:
        experiments: name -> the folder of one of its trials, and its options.

    Returns:
        All rows with the same keys: `run`, `trials`, mean, sd and n of each of `METRICS` (percent; the gap in points),
        and for each check `trials`, `margin`, `low`, `high` and `passes` of its verdict, None where it was not run.
    """
    rows = []
    for name, (folder, config) in experiments.items():
        trials = write_trials(folder, config.config_hash)
        if not trials["trials"]:
            continue
        row: Row = {"run": name, "trials": len(trials["trials"])}
        for metric in METRICS:
            row |= {f"{metric}_{part}": trials["figures"][metric][part] for part in ("mean", "sd", "n")}
        for check in CHECKS:
            verdict = trials["checks"].get(check) or {}
            row |= {f"{check}_{part}": verdict.get(part) for part in Verdict._fields}
        rows.append(row)
    return rows


def write_comparison(folder: Path, rows: Sequence[Row]) -> str:
    """Write `comparison.csv` and `comparison.md`, and return the text of the latter; every worker writes the same."""
    write_csv(folder / "comparison.csv", rows)
    heading = ["run", *METRICS.values(), *(f"ticket − {check}" for check in CHECKS), "trials"]
    cells = []
    for row in rows:
        metrics = [_spread(row, metric) for metric in METRICS]
        cells.append([row["run"], *metrics, *(_verdict(row, check) for check in CHECKS), str(row["trials"])])
    text = markdown_table(heading, cells) + "\n"
    write_atomic(folder / "comparison.md", text)
    return text


def _spread(row: Row, metric: str) -> str:
    mean, sd, n = (row[f"{metric}_{part}"] for part in ("mean", "sd", "n"))
    if mean is None:
        return "–"
    fewer = "" if n == row["trials"] else f" (n = {n})"
    return (f"{mean:.2f} ± {sd:.2f}" if sd and sd >= 0.005 else f"{mean:.2f}") + fewer


def _verdict(row: Row, check: str) -> str:
    if row[f"{check}_margin"] is None:
        return "–"
    verdict = Verdict(*(row[f"{check}_{part}"] for part in Verdict._fields))
    return f"{verdict.margin:+.2f}, {verdict.word}"
