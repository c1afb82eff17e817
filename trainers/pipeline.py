"""The story of a run: data, network, ticket, training, sanity checks, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from args_helper import Config, parse_args
from data import load_data
from data.loader import Splits
from models import build_model
from models.folding import FoldedNetwork
from models.masking import to_plain
from trainers.algorithms import load_algorithm
from trainers.algorithms.stages import warn_of_idle_milestones
from trainers.compiling import prepared
from trainers.folders import folder_of, is_finished, opened, resolved, trial_of
from trainers.loop import evaluate
from trainers.reference import dense_config, find_dense
from trainers.sanity import CHECKS
from trainers.statistics import refuse_single_images
from trainers.summary import log_outcome, related, summarise
from trainers.tickets import TICKET, read_ticket, write_ticket
from trainers.weights import train_ticket
from utils.errors import UserError
from utils.figures import draw_curves
from utils.files import write_atomic
from utils.launch import launched
from utils.masks import Ticket, masked_state
from utils.ranks import by_first, in_turns, joined, sharing, told
from utils.recipe import Recipe
from utils.report import dense_line, finished_trials, last_screen, trials_screen, write_summary, write_trials
from utils.run import Row, Run
from utils.summaries import read_summary


def run_trials(config: Config, go_on: bool = False) -> Path:
    """Run every trial of a config that is not finished yet, one after another, and report each and all.

    Args:
        config: the options.
        go_on: go on with trials that were begun, as if each had been resumed.

    Returns:
        The folder of the last trial.

    Raises:
        UserError: something given cannot be used.
        Stopped: the process was asked to stop; the trial at hand is saved.
    """
    config = resolved(config)
    warn_of_idle_milestones(config)
    with joined(torch.device(config.torch_device), config.dist_backend):
        here = launched()
        if here.restart:
            print(f"started again by torchrun ({here.restart}): going on from the last checkpoint", flush=True)
        # Not every machine is told of a restart; who allows any wants what was begun to go on.
        return _run_trials(config, go_on or here.may_restart)


def _run_trials(config: Config, go_on: bool) -> Path:
    last = config.trial_num + config.num_trial - 1
    for number in range(config.trial_num, last + 1):
        trial = trial_of(config, number)
        folder = folder_of(trial)
        resumed = go_on or (trial.resume is not None and number == config.trial_num)
        if is_finished(folder, trial, resumed):
            print(f"{folder} is finished: nothing to do")
        else:
            _run_trial(trial, folder)
        if config.with_dense and config.algo != "training" and not _has_dense(trial):
            dense = dense_config(trial).model_copy(update={"num_trial": 1})
            if not is_finished(folder_of(dense), dense, resumed=True):
                _run_trial(dense, folder_of(dense))
    report_trials(config, folder)
    return folder


@by_first
def _has_dense(config: Config) -> bool:
    return find_dense(config) is not None


def _run_trial(config: Config, folder: Path) -> None:
    """One run: find a ticket, train it, train its twins, report."""
    find_ticket = load_algorithm(config.algo)
    with in_turns():
        data = load_data(config)  # before there is a folder: what cannot start leaves none
        net = build_model(config, data.spec).to(config.torch_device)
    refuse_single_images(net, data)
    config = prepared(config, net, data)
    with opened(config, folder) as run:
        ticket, seconds = _found(find_ticket, net, data, config, run)
        before = _untrained_accuracies(net, ticket, data, config.precision)
        written = (folder / TICKET, ticket, net, config)
        sizes = by_first(write_ticket)(*written, before)

        tuned, checks = None, {}
        recipe = ticket.recipe or Recipe.of_tuning(config)
        if not config.skip_fine_tune or recipe.stage != "finetune":  # else the search has trained it
            tuned = train_ticket(run, recipe.stage, net, ticket, data, recipe)
            sizes = by_first(write_ticket)(*written, {**before, **_accuracies(tuned)})
            if config.save_model:
                _write_model(folder / "model.safetensors", net)
            if not config.skip_sanity_checks:
                checks = _checks(run, net, ticket, data, config)

        outcome = {**before, "tuned": tuned, "checks": checks, "search_seconds": seconds, "ticket_bytes": sizes}
        _conclude(run, config, ticket, net, data, outcome)


@by_first
def _conclude(run: Run, config: Config, ticket: Ticket, net: nn.Module, data: Splits, outcome: dict[str, Any]) -> None:
    summary = write_summary(run.folder, related(summarise(config, run, ticket, net, data, outcome), config))
    log_outcome(run, config, summary)
    draw_curves(run.folder / "curves.png", run.rows("search", "finetune"), summary)
    print(last_screen(summary, run.folder, run.log_folder))


def _found(find_ticket: Callable, net: nn.Module, data: Splits, config: Config, run: Run) -> tuple[Ticket, float]:
    """The ticket, and the seconds its search took; the network is plain afterwards."""
    started = time.perf_counter()
    ticket = find_ticket(net, data, config, run)
    seconds = time.perf_counter() - started
    to_plain(net)
    _check_kind(ticket, net, config)
    if sharing():
        # Scores of a single pass may differ in their last bit between GPUs, and what they rank with it.
        ticket = told(ticket.to(torch.device("cpu"))).to(data.train.device)
    return ticket, seconds


def _check_kind(ticket: Ticket, net: nn.Module, config: Config) -> None:
    """Raises: UserError: what an algorithm, which may be a user's own, has returned is no ticket of this network."""
    problem = None
    if not isinstance(ticket, Ticket):
        problem = f"returned {type(ticket).__name__}, not a Ticket"
    else:
        shapes = {name: value.shape for name, value in net.state_dict().items()}
        for kind, masks in (("masks", ticket.masks), ("gem", ticket.gem or {})):
            for name, mask in masks.items():
                if shapes.get(name) != mask.shape or str(mask.dtype) != "torch.bool":
                    problem = f"{kind}['{name}'] is not a boolean tensor of the shape {shapes.get(name)}"
        if set(ticket.state) != set(shapes):
            problem = "its state is not the plain network's whole state_dict"
        if not ticket.masks:
            problem = "it has no masks"
        if ticket.gem is not None and set(ticket.gem) != set(ticket.masks):
            problem = "its gem and its masks are of different layers"
    if problem:
        raise UserError(f"the ticket of algo {config.algo} cannot be used: {problem}")


def _untrained_accuracies(net: nn.Module, ticket: Ticket, data: Splits, precision: str) -> dict[str, float | None]:
    """Test and validation accuracy, in percent, of the subnetwork as the search left it."""
    net.load_state_dict(masked_state(ticket.state, ticket.untrained))
    folded, splits = FoldedNetwork(net).refreshed(), {"test": data.test, "val": data.val}
    return {f"{name}_acc_before_finetune": evaluate(folded, split, precision) for name, split in splits.items()}


def _accuracies(tuned: Row) -> Row:
    return {f"{split}_acc_after_finetune": tuned[f"{split}_acc"] for split in ("test", "val")}


@by_first
def _write_model(path: Path, net: nn.Module) -> None:
    write_atomic(path, save({name: value.contiguous() for name, value in net.state_dict().items()}))


def _checks(run: Run, net: nn.Module, ticket: Ticket, data: Splits, config: Config) -> dict[str, Row]:
    """Train the ticket's twins exactly as the ticket was; a dense network has none that differ."""
    if all(bool(mask.all()) for mask in ticket.masks.values()):
        return {}
    recipe = ticket.recipe or Recipe.of_tuning(config)
    checks = {}
    for name, check in CHECKS.items():
        twin = check(ticket, config, run.rng(f"check/{name}", "twin"))
        row = train_ticket(run, f"check/{name}", net, twin, data, recipe)
        checks[name] = {"test_acc_after_finetune": row["test_acc"]}
    return checks


@by_first
def report_trials(config: Config, folder: Path) -> None:
    """Relate every finished trial to what is among the results by now, and sum the trials up.

    Args:
        config: of the run.
        folder: of one of its trials.
    """
    for place, summary in finished_trials(folder, config.config_hash).items():
        trial = config.model_copy(update={"trial_num": summary["trial"]})
        if (now := related(summary, trial)) != summary:
            write_summary(place, now)
            if now["dense"]:
                print(f"{place}: the dense network {dense_line(now)}")
    trials = write_trials(folder, config.config_hash)
    if len(trials["trials"]) > 1:
        print(trials_screen(trials))


# ---- checks of runs that are finished ------------------------------------------------------------------------------


def check_runs(config: Config) -> None:
    """Make the missing sanity checks of every finished run under `sanity_folder`; or check a claimed `ticket`.

    Raises:
        UserError: there are no finished runs.
        Stopped: the process was asked to stop; the run at hand is saved, and the same command goes on.
    """
    if config.sanity_folder is None:
        run_trials(config)
        return
    root = Path(config.sanity_folder)
    folders = sorted(path.parent for path in root.rglob("summary.json") if (path.parent / "config.yml").is_file())
    if not folders:
        raise UserError(f"sanity_folder {root}: there is no finished run (a folder with a summary.json) in it")
    for folder in folders:
        _check_run(folder, config)


def _check_run(folder: Path, asked: Config) -> None:
    """Train the twins of a finished run's ticket, on the run's own device unless another was asked for."""
    summary = read_summary(folder / "summary.json")
    place = {name: getattr(asked, name) for name in ("device", "gpu", "no_cuda") if name in asked.model_fields_set}
    stored = parse_args(["--resume", str(folder)])
    config = resolved(stored.model_copy(update={**place, "skip_sanity_checks": False}))
    if summary["weights_remaining"] == summary["weights_total"] or set(CHECKS) <= set(summary["checks"]):
        print(f"{folder}: no check is missing")
        return
    if summary["test_acc_after_finetune"] is None:
        print(f"{folder}: its ticket was never trained, so that there is nothing to compare a check to")
        return
    ticket = read_ticket(folder / TICKET)[0].to(torch.device(config.torch_device))
    data = load_data(config)
    net = build_model(config, data.spec).to(config.torch_device)
    config = prepared(config, net, data)
    with opened(config, folder) as run:
        checks = _checks(run, net, ticket, data, config)
        written = write_summary(folder, related({**summary, "checks": checks}, config))
        write_trials(folder, config.config_hash)
        print(last_screen(written, folder, run.log_folder))
