"""Run the trials of a config: data, network, ticket, training, sanity checks, report.

`main.py`, the notebook and the export call `run_trials`. `_run_trial` is the story of one run. It has no line about
resuming: it is run again from its top, and every stage that is finished returns at once with what it stored. With
several ranks, all run this code; only the first writes files (`rank_zero_only`).
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from args_helper import Config, parse_args
from data.load import Splits, load_data
from models.build import build_model
from models.folding import FoldedNetwork
from models.masking import prunable_parameters, to_plain
from models.state_files import as_safetensors
from trainers.algorithms.load import load_algorithm
from trainers.checks.controls import CHECKS
from trainers.results.curves import curves, write_png
from trainers.results.references import dense_config, lacks_dense
from trainers.results.run_folder import folder_of, is_finished, opened, resolved, trial_of
from trainers.results.screens import dense_line, last_screen, trials_screen
from trainers.results.summarise import log_outcome, related, summarise
from trainers.results.summary import Outcome
from trainers.results.trials import finished_trials, judged, write_summary, write_trials
from trainers.tickets.file import TICKET, read_own_ticket, write_ticket
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.tickets.trained import teacher_of
from trainers.training.batchnorm import refuse_single_images, with_own_statistics
from trainers.training.compile import prepared
from trainers.training.loop import evaluate
from trainers.training.stages import warn_of_idle_milestones
from trainers.training.weights import train_ticket
from utils.distributed.collectives import broadcast, is_distributed, process_group, rank_zero_first, rank_zero_only
from utils.distributed.launch import launched
from utils.errors import Stopped, UserError
from utils.files import write_atomic
from utils.masks import masked_state
from utils.run.run import Row, Run


def run_trials(config: Config, go_on: bool = False) -> Path:
    """Run every unfinished trial of a config, one after another; report each trial and all of them together.

    Args:
        config: the options.
        go_on: resume trials that were begun.

    Returns:
        The folder of the last trial.

    Raises:
        UserError: something in the config cannot be used.
        Stopped: the process was asked to stop; the current trial is saved.
        Diverged: the loss or the weights of a trial are no longer finite; its last good checkpoint is kept.
    """
    config = resolved(config)
    warn_of_idle_milestones(config)
    with process_group(torch.device(config.torch_device), config.dist_backend):
        here = launched()
        if here.restart:
            print(f"started again by torchrun ({here.restart}): going on from the last checkpoint", flush=True)
        # torchrun does not tell every machine of a restart; whoever allows restarts wants begun trials resumed.
        return _run_trials(config, go_on or here.may_restart)


def _run_trials(config: Config, go_on: bool) -> Path:
    for number in config.trials:
        trial = trial_of(config, number)
        folder, asked, left = folder_of(trial), 0, number < config.trials[-1]
        if is_finished(folder, trial, resumed=go_on or trial.resume is not None):
            unsaved = config.save_model and not (folder / "model.safetensors").exists()
            print(f"{folder} is finished: nothing to do{'; --export writes its network' if unsaved else ''}")
        else:
            asked = _run_trial(trial, folder)
        if rank_zero_only(lacks_dense)(trial):
            dense = dense_config(trial).model_copy(update={"num_trial": 1})
            way_out = "move it away, or leave the dense network out by --no-with_dense"
            if not is_finished(folder_of(dense), dense, resumed=True, way_out=way_out):
                left = left or bool(asked)
                try:
                    asked = asked or _run_trial(dense, folder_of(dense))
                except Stopped as stopped:  # the ticket's run is the one to go on with: it has the trials that are left
                    raise Stopped(stopped.why, stopped.exit_code, folder) from stopped
        if asked and left:  # the signal came after the last step of a trial
            raise Stopped(f"stopped after {folder}, which is finished", asked)
    report_trials(config, folder)
    return folder


def _run_trial(config: Config, folder: Path) -> int:
    """Run one trial: find a ticket, train it, train its control networks, report.

    Args:
        config: of this trial, resolved; whether to compile is decided here, once the network is known.
        folder: of the run, made here unless it exists.

    Returns:
        The exit code to stop with if the process was asked to stop too late for the trial to heed it; else 0.
    """
    find_ticket = load_algorithm(config.algo)
    with rank_zero_first():
        data = load_data(config)  # before the folder is created: a run that cannot start leaves none
        net = build_model(config, data.spec).to(config.torch_device)
    refuse_single_images(net, data)
    if config.teacher and not config.skip_fine_tune:
        _check_teacher(config, net, data)
    config = prepared(config, net, data)
    with opened(config, folder, data) as run:
        ticket, seconds = _found(find_ticket, net, data, config, run)
        before = _untrained_accuracies(net, ticket, data, config.precision)
        written = (folder / TICKET, ticket, net, config)
        sizes = rank_zero_only(write_ticket)(*written, before)

        tuned, checks = None, {}
        recipe = ticket.recipe or Recipe.of_tuning(config)
        if not config.skip_fine_tune or recipe.stage != "finetune":  # else the search has already trained it
            tuned = train_ticket(run, recipe.stage, net, ticket, data, recipe)
            after = {f"{split}_acc_after_finetune": tuned[f"{split}_acc"] for split in ("test", "val")}
            sizes = rank_zero_only(write_ticket)(*written, {**before, **after})
            if config.save_model:
                _write_model(folder / "model.safetensors", net)
            if not config.skip_sanity_checks:
                checks = train_controls(run, net, ticket, data, config)

        outcome = {**before, "tuned": tuned, "checks": checks, "search_seconds": seconds, "ticket_bytes": sizes}
        _conclude(run, config, ticket, net, data, outcome)
        return run.asked("finetune", 0)[0]


def _check_teacher(config: Config, net: nn.Module, data: Splits) -> None:
    """Raises: UserError: the teacher cannot be used; found out before the search, not after it."""
    teacher_of(config.teacher, data.spec, net)
    theirs = parse_args(["--resume", config.teacher])
    if data.val is not None and (theirs.use_full_data or theirs.effective_seed != config.effective_seed):
        warnings.warn(
            f"teacher {config.teacher} has another seed, or all images: it may have been trained on images that this "
            "run holds out for validation, whose accuracy would then be too high",
            stacklevel=2,
        )


@rank_zero_only
def _conclude(run: Run, config: Config, ticket: Ticket, net: nn.Module, data: Splits, outcome: dict[str, Any]) -> None:
    summary = related(summarise(config, run, ticket, net, data, outcome), config)
    log_outcome(run, config, summary)
    write_png(run.folder / "curves.png", curves(run.rows("search", "finetune"), summary))
    summary = write_summary(run.folder, summary)  # last: with it the run is finished, and nothing of it is made again
    print(last_screen(summary, run.folder, run.log_folder))


def _found(find_ticket: Callable, net: nn.Module, data: Splits, config: Config, run: Run) -> tuple[Ticket, float]:
    """Return the ticket and the seconds of its search; the network is plain afterwards."""
    if found := _found_before(run, net):
        _check_kind(found[0], net, config)
        return found[0].to(data.train.device), found[1]
    started = time.perf_counter()
    ticket = find_ticket(net, data, config, run)
    seconds = time.perf_counter() - started
    to_plain(net)
    _check_kind(ticket, net, config)
    # A user's function may return the network's own tensors, which training would change under the ticket.
    own = net.state_dict()
    state = {name: value.detach().to(own[name], copy=True) for name, value in ticket.state.items()}
    ticket = replace(ticket, state=state)
    if ticket.recipe is None and not run.rows():  # else the search's own stages tell how far it has come
        run.save("ticket", {"seconds": seconds})
    if config.renew_batchnorm:
        batches = data.train.epoch(run.rng("search", "statistics"))
        ticket = with_own_statistics(ticket, net, batches, config.accumulate)
    if is_distributed():
        # Scores from a single pass may differ in the last bit between GPUs, and then the masks may differ too.
        ticket = broadcast(ticket.to(torch.device("cpu"))).to(data.train.device)
    return ticket, seconds


@rank_zero_only
def _found_before(run: Run, net: nn.Module) -> tuple[Ticket, float] | None:
    """The ticket that a search without stages has found, and its seconds; None if the run has not come so far.

    Repeated on another machine, the search may round to other masks than those whose training has begun.
    """
    kept, path = run.load("ticket"), run.folder / TICKET
    seconds = kept.get("seconds") if isinstance(kept, dict) else None
    return (read_own_ticket(path, net), seconds) if isinstance(seconds, float) and path.is_file() else None


def _check_kind(ticket: Ticket, net: nn.Module, config: Config) -> None:
    """Raises: UserError: an algorithm (perhaps a user's) returned something that is not a ticket of this network."""
    problem = None
    if not isinstance(ticket, Ticket):
        problem = f"returned {type(ticket).__name__}, not a Ticket"
    elif not all(_are_tensors(part) for part in (ticket.state, ticket.masks, ticket.gem or {})):
        problem = "its state, masks and gem have to map names to tensors"
    elif not (isinstance(ticket.facts, Mapping) and isinstance(ticket.recipe, Recipe | None)):
        problem = "its facts have to be a mapping, and its recipe a Recipe or None"
    elif not isinstance(ticket.facts.get("scoring_flops", 0), int):
        problem = "its scoring_flops are no whole number"
    else:
        shapes = {name: value.shape for name, value in net.state_dict().items()}
        if unlike := {*ticket.masks}.symmetric_difference(prunable_parameters(net)):
            problem = f"its masks are not those of all prunable weights: {', '.join(sorted(unlike)[:6])}"
        for kind, masks in (("masks", ticket.masks), ("gem", ticket.gem or {})):
            for name, mask in masks.items():
                if shapes.get(name) != mask.shape or str(mask.dtype) != "torch.bool":
                    problem = f"{kind}['{name}'] is not a boolean tensor of the shape {shapes.get(name)}"
        if {name: value.shape for name, value in ticket.state.items()} != shapes:
            problem = "its state is not the plain network's whole state_dict"
        if ticket.gem is not None and set(ticket.gem) != set(ticket.masks):
            problem = "its gem and its masks are of different layers"
        if taken := set(ticket.facts) & set(Outcome.model_fields):
            problem = f"the summary has a field of its own for {', '.join(sorted(taken))}, which facts cannot set"
        try:
            json.dumps(dict(ticket.facts), allow_nan=False)
        except (TypeError, ValueError) as error:
            problem = f"its facts are not values of JSON: {error}"
    if problem:
        raise UserError(f"the ticket of algo {config.algo} cannot be used: {problem}")


def _are_tensors(part: object) -> bool:
    return isinstance(part, Mapping) and all(isinstance(value, torch.Tensor) for value in part.values())


def _untrained_accuracies(net: nn.Module, ticket: Ticket, data: Splits, precision: str) -> dict[str, float | None]:
    """Measure test and validation accuracy, in percent, of the subnetwork before fine-tuning."""
    net.load_state_dict(masked_state(ticket.state, ticket.untrained))
    folded, splits = FoldedNetwork(net).refreshed(), {"test": data.test, "val": data.val}
    return {f"{name}_acc_before_finetune": evaluate(folded, split, precision) for name, split in splits.items()}


@rank_zero_only
def _write_model(path: Path, net: nn.Module) -> None:
    write_atomic(path, as_safetensors(net))


def train_controls(run: Run, net: nn.Module, ticket: Ticket, data: Splits, config: Config) -> dict[str, Row]:
    """Train the control networks exactly as the ticket was trained.

    A dense network has none that differ from it, and a ticket whose own training was changed has none to compare with.
    """
    if all(bool(mask.all()) for mask in ticket.masks.values()):
        return {}
    recipe = ticket.recipe or Recipe.of_tuning(config)
    if config.resumed_with:
        rows = (run.load(recipe.stage) or {}).get("rows", [])
        if not recipe.was_followed(rows, config.resumed_with):
            changed = f"the run was resumed with {config.resumed_with}, perhaps within its ticket's training"
            warnings.warn(f"no sanity checks: {changed}; no control network can be trained like it", stacklevel=2)
            return {}
    checks = {}
    for name, check in CHECKS.items():
        control = check(ticket, config, run.rng(f"check/{name}", "twin"))
        row = train_ticket(run, f"check/{name}", net, control, data, recipe)
        checks[name] = {"test_acc_after_finetune": row["test_acc"]}
    return checks


@rank_zero_only
def report_trials(config: Config, folder: Path) -> None:
    """Compare every finished trial to the related results that exist by now, and summarise all trials.

    Args:
        config: of the run.
        folder: of one of its trials.
    """
    for place, summary in finished_trials(folder, config.config_hash).items():
        trial = config.model_copy(update={"trial_num": summary["trial"]})
        if (now := judged(place, related(summary, trial))) != summary:
            write_summary(place, now)
            if now["dense"] and now["dense"] != summary["dense"]:
                print(f"{place}: the dense network {dense_line(now)}")
    trials = write_trials(folder, config.config_hash)
    if len(trials["trials"]) > 1:
        print(trials_screen(trials))
