"""The report that a run prints at its end.

All functions turn summaries into lines of text; none measures or reads anything. Accuracies and densities are in
percent, gaps and margins in percentage points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.algorithms import facts_of
from trainers.checks.verdict import Verdict
from trainers.results.summary import Summary


def last_screen(summary: Summary, folder: Path, log_folder: Path) -> str:
    """Format the report of a finished run, from its summary as written; the folders are only printed."""
    remaining, whole = summary["weights_remaining"], summary["weights_total"]
    lines = [
        "{arch} on {dataset}, {algo}, trial {trial}, seed {seed}".format(**summary),
        f"  weights remaining    {remaining:,} of {whole:,}: {summary['weights_remaining_percent']:.2f}%",
        *_connection_screen(summary),
        f"  {before_training(summary):<19}  {summary['test_acc_before_finetune']:6.2f}% test accuracy"
        f"{_gem_note(summary)}",
    ]
    if summary["test_acc_after_finetune"] is not None:
        val = summary["val_acc_after_finetune"]
        beside = "" if val is None else f", {val:.2f}% on validation"
        lines.append(f"  after training       {summary['test_acc_after_finetune']:6.2f}% test accuracy{beside}")
    if summary["dense"]:
        lines.append(f"  dense network         {dense_line(summary)}")
    if summary.get("rescued"):
        lines.append("  rescued: the search had switched off every weight; these are the highest scores")
    lines += _checks_screen(summary)
    if sizes := summary.get("ticket_bytes"):  # missing in runs of earlier versions
        lines.append(f"  ticket               {size_line(sizes)}")
    lines += [
        f"  seconds              {summary['seconds']:.0f} on {summary['device']} "
        f"(search {summary['search_seconds']:.0f}, fine-tuning {summary['finetune_seconds']:.0f})",
        f"  run folder           {folder}",
        f"  TensorBoard          tensorboard --logdir {log_folder}",
    ]
    return "\n".join(lines)


def before_training(summary: Mapping[str, Any]) -> str:
    """Say what the accuracy before the fine-tuning is the accuracy of."""
    return "before any training" if summary.get("as_drawn") else "before fine-tuning"


def dense_line(summary: Summary) -> str:
    """How far a ticket is from the dense network, in words."""
    accuracy, gap = summary["dense"]["test_acc_after_finetune"], summary["dense"]["gap"]
    otherwise = "" if summary["dense"].get("trained_alike", True) else f"; trained otherwise: {summary['dense']['run']}"
    return f"{accuracy:.2f}%: the ticket is {abs(gap):.2f} points {'below' if gap >= 0 else 'above'} it{otherwise}"


_PARTS = {"mask": "mask", "gem": "gem", "weights": "weights", "others": "BatchNorm", "header": "names and metrics"}


def size_line(sizes: Mapping[str, int]) -> str:
    """The size of a ticket's file and its parts, in words; kB are 1,000 bytes."""
    parts = ", ".join(f"{label} {sizes[name] / 1e3:.1f}" for name, label in _PARTS.items() if sizes[name])
    return f"{sizes['file'] / 1e3:.1f} kB: {parts}; the dense network has {sizes['dense'] / 1e3:,.0f} kB"


def _connection_screen(summary: Summary) -> list[str]:
    """Lines on a missed target density, cut-off weights and dead layers; only where there are any."""
    lines = []
    differs = f"{summary['weights_remaining_percent']:.2f}" != f"{summary['target_sparsity']:.2f}"
    if summary["density_reason"] and differs:
        lines.append(
            f"                       (the target was {summary['target_sparsity']:g}%: {summary['density_reason']})"
        )
    cut_off = summary["weights_remaining"] - summary["effective_weights_remaining"]
    if cut_off:
        share = summary["effective_weights_remaining_percent"]
        lines.append(f"  effective            {share:.2f}%: {cut_off:,} weights are cut off from input or output")
    if summary["dead_layers"]:
        lines.append(f"  dead layers          {', '.join(summary['dead_layers'])}")
    return lines


def _gem_note(summary: Summary) -> str:
    chance = f"chance is {100 / summary['classes']:.3g}%"
    gem = summary["gem_weights_remaining"]
    if gem is None:
        return f" ({chance})"
    drawn = " as drawn" if summary.get("as_drawn") else ""
    return f", the gem of {gem:,} weights ({100 * gem / summary['weights_total']:.2f}%){drawn}; {chance}"


def _checks_screen(summary: Summary) -> list[str]:
    trained = "trained under the final masks" if facts_of(summary["algo"]).search == "sparse" else "fine-tuned alike"
    lines = [f"  sanity checks        {trained}; the ticket should be better"] if summary["checks"] else []
    for name, check in summary["checks"].items():
        verdict = Verdict(*(check[part] for part in Verdict._fields))
        margin = f"{verdict.margin:+.2f} points{' on average' if verdict.trials > 1 else ''}"
        lines.append(f"    {name:<18} {check['test_acc_after_finetune']:6.2f}%  ticket {margin}: {verdict}")
    return lines


def trials_screen(trials: Mapping[str, Any]) -> str:
    """A table of mean ± standard deviation over trials, from what `trainers.results.trials.write_trials` returns."""
    lines = [f"over trials {', '.join(map(str, trials['trials']))} (mean ± standard deviation)"]
    for name, spread in trials["figures"].items():
        if spread["mean"] is not None:
            sd = "" if spread["sd"] is None else f" ± {spread['sd']:.2f}"
            lines.append(f"  {name:<42} {spread['mean']:10.2f}{sd}  (n = {spread['n']})")
    gap = trials["figures"]["gap_to_dense"]["mean"]
    beside = "" if gap is None else f"; the ticket is {abs(gap):.2f} {'below' if gap >= 0 else 'above'} dense"
    for name, check in trials["checks"].items():
        more = "" if name == "score_inversion" else beside  # in it, the gap is not that of the ticket
        lines.append(f"  {name:<42} {check['margin']:+10.2f} points: {Verdict(**check)}{more}")
    return "\n".join(lines)
