"""Read run folders into validated records; a damaged folder is reported and does not stop the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from args_helper import Config, parse_args
from trainers.results.beginnings import are_alike, files_of
from trainers.results.references import Found, find_dense
from trainers.results.summary import Outcome, read_outcome
from trainers.results.trials import beside_dense
from trainers.training.epoch_row import EpochRow, read_epochs
from utils.errors import UserError, counted
from utils.files import files_below

GOING_ON, FINISHED, DAMAGED = "going on", "finished", "damaged"


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its folder.

    Attributes:
        folder: of the run.
        config: its options.
        config_hash: of the experiment; for a finished run, as in its summary. Runs with the same options that began
            from other files are other experiments: `origin` stands behind their hash.
        state: `finished`, `going on` (no summary: running or stopped) or `damaged` (its summary cannot be used).
        outcome: its results; None unless it is finished.
        epochs: the rows of search and fine-tuning so far.
        origin: numbers, from 1, the files that runs with one config hash began from.
    """

    folder: Path
    config: Config
    config_hash: str
    state: str
    outcome: Outcome | None
    epochs: tuple[EpochRow, ...]
    origin: int = 1

    @property
    def trial(self) -> int:
        """The number of the trial."""
        return self.config.trial_num


@dataclass(frozen=True)
class Problem:
    """Something in a run folder that could not be used."""

    folder: Path
    text: str


def gather(roots: Sequence[Path]) -> tuple[list[RunRecord], list[Problem]]:
    """Return the runs in some folders, at any depth, sorted by path; each trial of an experiment appears once.

    Args:
        roots: folders to search; they may overlap.

    Returns:
        The runs, and what could not be used, for the page and a warning.

    Raises:
        UserError: a folder does not exist, or none of them holds a run.
    """
    for root in roots:
        if not root.is_dir():
            raise UserError(f"report: there is no folder {root}")
    found = {path.parent.resolve() for root in roots for path in files_below(root, "config.yml", "summary.json")}
    if not found:
        raise UserError(f"report: there is no run (a folder with a config.yml) in {', '.join(map(str, roots))}")
    problems: list[Problem] = []
    runs = [run for folder in sorted(found) if (run := _read_run(folder, problems))]
    if not runs:
        listed = "\n  ".join(f"{one.folder}: {one.text}" for one in problems)
        raise UserError(f"report: none of the runs can be read\n  {listed}")
    return _beside_dense(_once(runs, problems)), problems


def _beside_dense(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Compare every ticket with the dense runs among these, one of which may have been finished after it."""
    finished = [run for run in runs if run.outcome]
    dense = [Found(one.folder, one.outcome.model_dump()) for one in finished if one.config.algorithm.is_dense]
    compared = {}
    for run in finished if dense else ():
        if not run.config.algorithm.is_dense:
            beside = beside_dense(run.outcome.model_dump(), find_dense(run.config, dense))
            compared[run.folder] = replace(run, outcome=Outcome.model_validate(beside))
    return [compared.get(run.folder, run) for run in runs]


def _read_run(folder: Path, problems: list[Problem]) -> RunRecord | None:
    try:
        if not (folder / "config.yml").is_file():
            raise UserError("there is no config.yml beside its summary.json")
        config = parse_args(["--resume", str(folder)])
    except UserError as error:
        problems.append(Problem(folder, f"left out: {error}"))
        return None
    outcome, state, name = None, GOING_ON, config.config_hash
    if (folder / "summary.json").exists():
        try:
            outcome, state = read_outcome(folder / "summary.json"), FINISHED
            if outcome.test_acc_after_finetune is None:  # then there is no ticket accuracy to compare a check to
                outcome = outcome.model_copy(update={"checks": {}, "inverts": None})
            name = outcome.config_hash
        except UserError as error:
            problems.append(Problem(folder, f"its results are left out: {error}"))
            state = DAMAGED
    if outcome and (name, outcome.trial) != (config.config_hash, config.trial_num):
        before, now = f"{name}, trial {outcome.trial}", f"{config.config_hash}, trial {config.trial_num}"
        told = f"its config.yml, or a .py file it names, is no longer what ran: summary.json has {before}, not {now}"
        problems.append(Problem(folder, told))
    epochs, said = read_epochs(folder / config.results_filename)
    if said:
        told = f"{config.results_filename}: only {counted(len(epochs), 'epoch')} can be used: {said}"
        problems.append(Problem(folder, told))
    return RunRecord(folder, config, name, state, outcome, tuple(epochs))


def _once(runs: Sequence[RunRecord], problems: list[Problem]) -> list[RunRecord]:
    """Remove copies: the same experiment and trial, found twice, counts once."""
    kept: dict[tuple[str, int], RunRecord] = {}
    begun: dict[str, list[dict[str, str]]] = defaultdict(list)
    # The most complete first: finished before unfinished, then those with more checks.
    for run in sorted(runs, key=lambda run: (run.outcome is None, -len(run.outcome.checks) if run.outcome else 0)):
        files, others = files_of(run.folder), begun[run.config_hash]
        alike = (number for number, other in enumerate(others, start=1) if are_alike(files, other))
        if (origin := next(alike, len(others) + 1)) > len(others):
            others.append(files)
        if origin > 1:
            run = replace(run, config_hash=f"{run.config_hash}-{origin}", origin=origin)
        first = kept.setdefault((run.config_hash, run.trial), run)
        if first is not run:
            problems.append(Problem(run.folder, f"left out: it is the same experiment and trial as {first.folder}"))
    return sorted(kept.values(), key=lambda run: run.folder)
