"""Writes a finished run's `summary.json`, and `trials.json` over the trials of its experiment."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from trainers.checks.verdict import Verdict, judge
from trainers.results.beginnings import are_alike, files_of
from trainers.results.references import Found
from trainers.results.summary import AVERAGED, Outcome, Summary, read_summary
from utils.errors import UserError
from utils.files import write_json


class Spread(NamedTuple):
    """Average and sample standard deviation of n values; None where there are too few.

    Attributes:
        mean: None without values.
        sd: with n − 1 in the denominator; None with fewer than two values.
        n: number of values that are not None.
    """

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The spread of the values that are not None."""
        known = [value for value in values if value is not None]
        return cls(fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known))

    def columns(self, name: str) -> dict[str, float | None]:
        """The columns `name`_mean and `name`_sd of a table."""
        return {f"{name}_mean": self.mean, f"{name}_sd": self.sd}


def write_summary(folder: Path, summary: Summary) -> Summary:
    """Write a finished run's `summary.json`, with checks judged over all finished trials of the experiment.

    Args:
        folder: the run's.
        summary: with `checks` as name -> {"test_acc_after_finetune": percent}.

    Returns:
        The summary as written, each check with its verdict.
    """
    written = judged(folder, summary)
    write_json(folder / "summary.json", written)
    return written


def judged(folder: Path, summary: Summary) -> Summary:
    """The summary of a run in a folder, each check with its verdict over all finished trials of the experiment."""
    there = finished_trials(folder, summary["config_hash"]).values()
    verdicts = judge_checks([*(one for one in there if one["trial"] != summary["trial"]), summary])
    checks = {name: {**check, **verdicts[name]._asdict()} for name, check in summary["checks"].items()}
    return {**summary, "checks": checks}


def beside_dense(summary: Summary, dense: Found | None) -> Summary:
    """Add the dense network's accuracy to a summary, and how far below it ticket and checks are (percentage points).

    Args:
        summary: of a ticket.
        dense: the dense run with the same data, network and trial. If there is none any more, the summary's own
            comparison stays, and one with a dense run that was trained alike gives way to no other.
    """
    own, before = summary["test_acc_after_finetune"], summary.get("dense") or {}
    if before.get("trained_alike") and dense and not dense.is_alike:
        dense = None
    reference = (dense.summary if dense else before).get("test_acc_after_finetune")
    if reference is None or own is None:
        return {**summary, "dense": None}
    checks = {
        name: {**check, "gap_to_dense": reference - check["test_acc_after_finetune"]}
        for name, check in summary["checks"].items()
    }
    found = {
        "test_acc_after_finetune": reference,
        "gap": reference - own,
        "run": str(dense.folder) if dense else before.get("run"),
        "trained_alike": dense.is_alike if dense else before.get("trained_alike", True),
    }
    return {**summary, "checks": checks, "dense": found}


def dense_references(summaries: Iterable[Summary]) -> list[dict[str, Any]]:
    """The dense networks that tickets are compared with: those trained as the tickets were or, if none was, all."""
    found = [one["dense"] for one in summaries if one.get("dense")]
    return [one for one in found if one.get("trained_alike", True)] or found


def finished_trials(folder: Path, config_hash: str) -> dict[Path, Summary]:
    """Run folder -> summary of an experiment's finished trials in and beside `folder`, ordered by trial.

    Of copies, prefer the one in `folder`, then one named `trial_*`.

    A damaged summary is left out, with a warning: its own run has to repair it. Other experiments are passed over, and
    trials that began from other files of the same names.
    """
    found: dict[int, tuple[Path, Summary]] = {}
    files = files_of(folder)
    paths = folder.parent.glob("*/summary.json")
    for path in sorted(paths, key=lambda path: (path.parent == folder, path.parent.name.startswith("trial_"))):
        try:
            summary = read_summary(path)
        except UserError as error:
            warnings.warn(f"{error}; it is left out: remove it and go on with that run", stacklevel=2)
            continue
        if summary["config_hash"] == config_hash and are_alike(files, files_of(path.parent)):
            found[summary["trial"]] = path.parent, summary
    return dict(found[number] for number in sorted(found))


def check_pairs(summaries: Iterable[Summary]) -> dict[str, list[tuple[float, float]]]:
    """Check -> the accuracies of the ticket and of its control network, of every trial that ran it.

    Args:
        summaries: of trials of one experiment; of inverted runs, the check is `score_inversion`, in which the upright
            run is the ticket.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for one in summaries:
        for name, check in one["checks"].items():
            pair = (one["test_acc_after_finetune"], check["test_acc_after_finetune"])
            pairs.setdefault(name, []).append(pair)
        if one.get("inverts"):  # an inverted run is itself the check of another
            pair = (one["inverts"]["test_acc_after_finetune"], one["test_acc_after_finetune"])
            pairs.setdefault("score_inversion", []).append(pair)
    return pairs


def judge_checks(summaries: Iterable[Summary]) -> dict[str, Verdict]:
    """The verdict on every check over the trials that ran it, paired trial by trial (see `check_pairs`)."""
    return {name: judge(*zip(*paired)) for name, paired in check_pairs(summaries).items()}


def write_trials(folder: Path, config_hash: str) -> dict[str, Any]:
    """Write `trials.json` above a run folder: average and standard deviation over the experiment's finished trials.

    Args:
        folder: of one of the trials.
        config_hash: of the experiment.

    Returns:
        What was written: `config_hash`, `trials` (their numbers), `figures` (metric -> `mean`, `sd`, `n`) and `checks`
        (check -> verdict).
    """
    summaries = finished_trials(folder, config_hash).values()
    spreads = {name: Spread.of(one[name] for one in summaries) for name in AVERAGED}
    references = dense_references(summaries)
    spreads["dense_test_acc_after_finetune"] = Spread.of(one["test_acc_after_finetune"] for one in references)
    spreads["gem_percent"] = Spread.of(Outcome.model_construct(**one).gem_percent for one in summaries)
    spreads["gap_to_dense"] = Spread.of(one["gap"] for one in references)
    for name, pairs in check_pairs(summaries).items():
        spreads[f"{name}_test_acc_after_finetune"] = Spread.of(control for _, control in pairs)
    trials = {
        "config_hash": config_hash,
        "trials": [one["trial"] for one in summaries],
        "figures": {name: spread._asdict() for name, spread in spreads.items()},
        "checks": {name: verdict._asdict() for name, verdict in judge_checks(summaries).items()},
    }
    write_json(folder.parent / "trials.json", trials)
    return trials
