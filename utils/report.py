"""What a finished run says: `summary.json`, `trials.json` over its siblings, and the last screen."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.files import write_json
from utils.summaries import read_summary
from utils.verdict import Verdict, judge

Summary = dict[str, Any]


class Spread(NamedTuple):
    """Mean and sample standard deviation of n figures; None where there are too few."""

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Of the values that are known."""
        known = [value for value in values if value is not None]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))


AVERAGED = (
    "test_acc_before_finetune", "test_acc_after_finetune", "val_acc_after_finetune", "weights_remaining_percent",
    "gem_weights_remaining", "effective_weights_remaining_percent", "seconds",
)  # fmt: skip


def write_summary(folder: Path, summary: Summary) -> Summary:
    """Write a finished run's `summary.json`, its checks judged over all finished trials of the experiment.

    Args:
        folder: the run's.
        summary: with `checks` as name -> {"test_acc_after_finetune": percent}.

    Returns:
        The summary as written, each check with its verdict.
    """
    others = [one for one in siblings(folder, summary["config_hash"]) if one["trial"] != summary["trial"]]
    verdicts = judge_checks([*others, summary])
    checks = {name: {**check, **asdict(verdicts[name])} for name, check in summary["checks"].items()}
    written = {**summary, "checks": checks}
    write_json(folder / "summary.json", written)
    return written


def beside_dense(summary: Summary, dense: Summary | None, dense_folder: Path | None) -> Summary:
    """A summary with the accuracy of the dense network beside its own and its checks', in percentage points below it.

    Args:
        summary: of a ticket.
        dense: of the dense run of the same data, network and trial; None where there is none.
        dense_folder: that run's.
    """
    own, reference = summary["test_acc_after_finetune"], dense and dense["test_acc_after_finetune"]
    if reference is None or own is None:
        return {**summary, "dense": None}
    checks = {
        name: {**check, "gap_to_dense": reference - check["test_acc_after_finetune"]}
        for name, check in summary["checks"].items()
    }
    found = {"test_acc_after_finetune": reference, "gap": reference - own, "run": str(dense_folder)}
    return {**summary, "checks": checks, "dense": found}


def siblings(folder: Path, config_hash: str) -> list[Summary]:
    """The summaries of the finished trials of the same experiment beside a run folder, its own among them, by trial."""
    return list(finished_trials(folder, config_hash).values())


def finished_trials(folder: Path, config_hash: str) -> dict[Path, Summary]:
    """Run folder -> summary of those trials; of copies the folder itself counts, then one called after a trial.

    One that is damaged is left out, with a warning: it is its own run's to mend.
    """
    found: dict[int, tuple[Path, Summary]] = {}
    paths = folder.parent.glob("*/summary.json")
    for path in sorted(paths, key=lambda path: (path.parent == folder, path.parent.name.startswith("trial_"))):
        try:
            summary = read_summary(path)
        except UserError as error:
            warnings.warn(f"{error}; it is left out: remove it and go on with that run", stacklevel=2)
            continue
        if summary["config_hash"] == config_hash:
            found[summary["trial"]] = path.parent, summary
    return dict(found[number] for number in sorted(found))


def judge_checks(summaries: Iterable[Summary]) -> dict[str, Verdict]:
    """The verdict on every check over the trials that ran it."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for one in summaries:
        for name, check in one["checks"].items():
            pair = (one["test_acc_after_finetune"], check["test_acc_after_finetune"])
            pairs.setdefault(name, []).append(pair)
        if one.get("inverts"):  # such a run is itself the check of another
            pair = (one["inverts"]["test_acc_after_finetune"], one["test_acc_after_finetune"])
            pairs.setdefault("score_inversion", []).append(pair)
    return {name: judge(*zip(*paired)) for name, paired in pairs.items()}


def write_trials(folder: Path, config_hash: str) -> dict[str, Any]:
    """Write `trials.json` above a run folder: mean and standard deviation over the experiment's finished trials."""
    summaries = siblings(folder, config_hash)
    figures: dict[str, Any] = {name: _spread([one[name] for one in summaries]) for name in AVERAGED}
    known = [one["dense"] or {} for one in summaries]
    figures["dense_test_acc_after_finetune"] = _spread([one.get("test_acc_after_finetune") for one in known])
    figures["gap_to_dense"] = _spread([one.get("gap") for one in known])
    verdicts = judge_checks(summaries)
    for name in verdicts:
        accuracies = [one["checks"][name]["test_acc_after_finetune"] for one in summaries if name in one["checks"]]
        figures[f"{name}_test_acc_after_finetune"] = _spread(accuracies)
    trials = {
        "config_hash": config_hash,
        "trials": [one["trial"] for one in summaries],
        "figures": figures,
        "checks": {name: asdict(verdict) for name, verdict in verdicts.items()},
    }
    write_json(folder.parent / "trials.json", trials)
    return trials


def _spread(values: list[float | None]) -> dict[str, float | int | None]:
    return Spread.of(values)._asdict()


# ---- for the eyes --------------------------------------------------------------------------------------------------


def last_screen(summary: Summary, folder: Path, log_folder: Path) -> str:
    """What a person sees when a run has ended."""
    remaining, whole = summary["weights_remaining"], summary["weights_total"]
    lines = [
        "{arch} on {dataset}, {algo}, trial {trial}, seed {seed}".format(**summary),
        f"  weights remaining    {remaining:,} of {whole:,}: {summary['weights_remaining_percent']:.2f}%",
        *_connection_screen(summary),
        f"  before any training  {summary['test_acc_before_finetune']:6.2f}% test accuracy{_gem_note(summary)}",
    ]
    if summary["test_acc_after_finetune"] is not None:
        val = summary["val_acc_after_finetune"]
        beside = "" if val is None else f", {val:.2f}% on validation"
        lines.append(f"  after training       {summary['test_acc_after_finetune']:6.2f}% test accuracy{beside}")
    if summary["dense"]:
        lines.append(f"  dense network         {dense_line(summary)}")
    if summary.get("rescued"):
        lines.append("  rescued: the search had switched off every weight; these are the highest scores")
    lines += _checks_screen(summary["checks"])
    if sizes := summary.get("ticket_bytes"):  # which runs of earlier versions have not
        lines.append(f"  ticket               {size_line(sizes)}")
    lines += [
        f"  seconds              {summary['seconds']:.0f} on {summary['device']} "
        f"(search {summary['search_seconds']:.0f}, fine-tuning {summary['finetune_seconds']:.0f})",
        f"  run folder           {folder}",
        f"  TensorBoard          tensorboard --logdir {log_folder}",
    ]
    return "\n".join(lines)


def dense_line(summary: Summary) -> str:
    """How far a ticket is from the dense network, in words."""
    accuracy, gap = summary["dense"]["test_acc_after_finetune"], summary["dense"]["gap"]
    return f"{accuracy:.2f}%: the ticket is {abs(gap):.2f} points {'below' if gap >= 0 else 'above'} it"


_PARTS = {"mask": "mask", "gem": "gem", "weights": "weights", "others": "BatchNorm", "header": "names and figures"}


def size_line(sizes: Mapping[str, int]) -> str:
    """The size of a ticket's file and its parts, in words; kB are 1,000 bytes."""
    parts = ", ".join(f"{label} {sizes[name] / 1e3:.1f}" for name, label in _PARTS.items() if sizes[name])
    return f"{sizes['file'] / 1e3:.1f} kB: {parts}; the dense network has {sizes['dense'] / 1e3:,.0f} kB"


def _connection_screen(summary: Summary) -> list[str]:
    """Why the density is not the target's, and what of the mask connects nothing; only where there is something."""
    lines = []
    differs = f"{summary['weights_remaining_percent']:.2f}" != f"{summary['target_sparsity']:.2f}"
    if summary["density_reason"] and differs:
        lines.append(
            f"                       ({summary['target_sparsity']:g}% was asked for: {summary['density_reason']})"
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
    return f", the gem of {gem:,} weights ({100 * gem / summary['weights_total']:.2f}%) as drawn; {chance}"


def _checks_screen(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["  sanity checks        fine-tuned alike; the ticket should be better"] if checks else []
    for name, check in checks.items():
        verdict = Verdict(*(check[key] for key in ("trials", "margin", "low", "high", "passes")))
        lines.append(
            f"    {name:<18} {check['test_acc_after_finetune']:6.2f}%  ticket {verdict.margin:+.2f} points: {verdict}"
        )
    return lines


def trials_screen(trials: Mapping[str, Any]) -> str:
    """A table of mean ± standard deviation over trials."""
    lines = [f"over trials {', '.join(map(str, trials['trials']))} (mean ± standard deviation)"]
    for name, spread in trials["figures"].items():
        if spread["mean"] is not None:
            sd = "" if spread["sd"] is None else f" ± {spread['sd']:.2f}"
            lines.append(f"  {name:<42} {spread['mean']:10.2f}{sd}  (n = {spread['n']})")
    gap = trials["figures"]["gap_to_dense"]["mean"]
    beside = "" if gap is None else f"; the ticket is {gap:.2f} below dense"
    for name, check in trials["checks"].items():
        lines.append(f"  {name:<42} {check['margin']:+10.2f} points: {Verdict(**check)}{beside}")
    return "\n".join(lines)
