"""The story of a run: data, network, ticket, fine-tuning, sanity checks, report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from args_helper import Config, difference, parse_args
from data import load_data
from data.loader import Splits
from models import build_model
from models.masking import to_plain
from trainers.algorithms import ALGORITHMS
from trainers.loop import evaluate
from trainers.sanity import CHECKS
from trainers.weights import fine_tune
from utils.environment import choose_device, describe_environment, device_name
from utils.errors import UserError, resume_command
from utils.figures import draw_curves
from utils.files import write_atomic, write_json
from utils.masks import Ticket, masked_state, per_layer, remaining, total
from utils.report import AVERAGED, Summary, last_screen, trials_screen, write_summary, write_trials
from utils.run import Run

FindTicket = Callable[[nn.Module, Splits, Config, Run], Ticket]


def run_trials(config: Config) -> None:
    """Run every trial of a config that is not finished yet, one after another, and report each and all.

    Raises:
        UserError: something given cannot be used.
        Stopped: the process was asked to stop; the trial at hand is saved.
    """
    config = _resolved(config)
    last = config.trial_num + config.num_trial - 1
    for number in range(config.trial_num, last + 1):
        # What is left to do from here on, so that resuming this trial goes on with the later ones.
        trial = config.model_copy(update={"trial_num": number, "num_trial": last - number + 1})
        folder = _folder(trial)
        resumed = trial.resume is not None and number == config.trial_num
        if _is_finished(folder, trial, resumed):
            print(f"{folder} is finished: nothing to do")
        else:
            _run_trial(trial, folder)
    trials = write_trials(folder, config.config_hash)
    if len(trials["trials"]) > 1:
        print(trials_screen(trials))


def _run_trial(config: Config, folder: Path) -> None:
    """One run: find a ticket, train it, train its twins, report."""
    data = load_data(config)  # before there is a folder: what cannot start leaves none
    net = build_model(config, data.spec).to(config.torch_device)
    with _opened(config, folder).until_stopped() as run:
        ticket = find_ticket_of(config)(net, data, config, run)
        _keep_ticket(run, ticket, config)
        before = _untrained_accuracy(net, ticket, data)

        tuned, checks = None, {}
        if not config.skip_fine_tune:
            tuned = fine_tune(run, "finetune", net, ticket, data, config)
            if config.save_model:
                state = {name: value.contiguous() for name, value in net.state_dict().items()}
                write_atomic(run.folder / "model.safetensors", save(state))
            for name, check in CHECKS.items() if not config.skip_sanity_checks else ():
                twin = check(ticket, config, run.rng(f"check/{name}", "twin"))
                row = fine_tune(run, f"check/{name}", net, twin, data, config)
                checks[name] = {"test_acc_after_finetune": row["test_acc"]}

        outcome = {"test_acc_before_finetune": before, "tuned": tuned, "checks": checks}
        summary = write_summary(folder, _summary(config, run, ticket, data, outcome))
        _log_outcome(run, config, summary)
        draw_curves(folder / "curves.png", [*run.rows("search"), *run.rows("finetune")], summary)
        print(last_screen(summary, folder, run.log_folder))


# ---- before a run --------------------------------------------------------------------------------------------------


def _resolved(config: Config) -> Config:
    """The config with every `auto` decided."""
    device = choose_device(config.device, config.gpu, config.no_cuda)
    if device == "cpu" and "gpu" in config.model_fields_set and config.device == "auto" and not config.no_cuda:
        warnings.warn(f"there is no GPU number {config.gpu}: using the CPU", stacklevel=2)
    if config.threads:
        torch.set_num_threads(config.threads)
    return config.model_copy(update={"device": device, "threads": torch.get_num_threads()})


def _folder(config: Config) -> Path:
    if config.resume:  # wherever it was moved to; later trials go beside it
        return Path(config.resume).resolve().with_name(f"trial_{config.trial_num}")
    return Path(config.results_dir) / _place(config)


def _place(config: Config) -> Path:
    """The run's folder under results_dir, and its events' under log_dir; parts that are not given are left out."""
    parts = (config.subfolder, config.name, config.run_idx, f"trial_{config.trial_num}")
    return Path(*(part for part in parts if part))


def _is_finished(folder: Path, config: Config, resumed: bool) -> bool:
    """Whether this very run is there and finished; one that is resumed may be there unfinished.

    Raises:
        UserError: another experiment lies there, or this one, unfinished.
    """
    stored = folder / "config.yml"
    if not stored.is_file():
        return False
    there = parse_args(["--config", str(stored)])
    if there.config_hash != config.config_hash:
        raise UserError(
            f"{folder} holds another experiment, which differs in: {difference(there, config)}; "
            f"to run this one beside it, give --name {_free_name(config)}"
        )
    finished = (folder / "summary.json").is_file()
    if not finished and not resumed:
        raise UserError(f"{folder} holds this run, unfinished; go on with it by: {resume_command(folder)}")
    return finished


def _free_name(config: Config) -> str:
    """A name under which there is no run folder yet."""
    names = (f"{config.name or 'run'}_{number}" for number in count(2))
    return next(name for name in names if not _folder(config.model_copy(update={"name": name})).exists())


def _opened(config: Config, folder: Path) -> Run:
    """The run's folder, with its options and environment written down."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yml", config.to_yaml())
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", describe_environment(config.torch_device))
    kept = set(config.ckpt_at_fixed_epochs)
    if config.checkpoint_at_prune and config.algo == "hc_iter":
        kept.update(config.prunings)
    run = Run(
        folder,
        Path(config.log_dir) / _place(config),
        config.effective_seed,
        config.results_filename,
        keep_every=config.save_every,
        keep_at={"search": frozenset(kept)},
        refresh_every=config.print_freq,
    )
    run.writer().add_text("config", "```yaml\n" + config.to_yaml() + "```")
    return run


def find_ticket_of(config: Config) -> FindTicket:
    module, _, function = ALGORITHMS[config.algo].partition(":")
    return getattr(import_module(module), function)


# ---- after a search ------------------------------------------------------------------------------------------------


def _keep_ticket(run: Run, ticket: Ticket, config: Config) -> None:
    """Write the ticket: `state/NAME`, `mask/NAME` and, where there is one, `gem/NAME` (masks as 0 and 1)."""
    parts: dict[str, Any] = {f"state/{name}": value for name, value in ticket.state.items()}
    for kind, masks in (("mask", ticket.masks), ("gem", ticket.gem or {})):
        parts |= {f"{kind}/{name}": mask.to(torch.uint8) for name, mask in masks.items()}
    content = {name: value.detach().cpu().contiguous().clone() for name, value in parts.items()}
    about = {"config_hash": config.config_hash, "arch": config.arch, "algo": config.algo}
    write_atomic(run.folder / "ticket.safetensors", save(content, about))


def _untrained_accuracy(net: nn.Module, ticket: Ticket, data: Splits) -> float:
    """Test accuracy, in percent, of the subnetwork as the search left it."""
    to_plain(net).load_state_dict(masked_state(ticket.state, ticket.untrained))
    return evaluate(net, data.test)


def _summary(config: Config, run: Run, ticket: Ticket, data: Splits, outcome: dict[str, Any]) -> Summary:
    kept, whole, tuned = remaining(ticket.masks), total(ticket.masks), outcome["tuned"]
    search, tuning = run.seconds("search"), run.seconds("finetune")
    return {
        "algo": config.algo,
        "arch": config.arch,
        "dataset": config.dataset,
        "classes": len(data.spec.classes),
        "trial": config.trial_num,
        "seed": config.effective_seed,
        "target_sparsity": config.target_sparsity,
        "weights_total": whole,
        "weights_remaining": kept,
        "weights_remaining_percent": 100.0 * kept / whole,
        "gem_weights_remaining": None if ticket.gem is None else remaining(ticket.gem),
        "layers": per_layer(ticket.masks),
        "test_acc_before_finetune": outcome["test_acc_before_finetune"],
        "test_acc_after_finetune": tuned and tuned["test_acc"],
        "val_acc_after_finetune": tuned and tuned["val_acc"],
        "checks": outcome["checks"],
        "seconds": run.seconds("search", "finetune", "check"),
        "search_seconds": search,
        "finetune_seconds": tuning,
        "device": device_name(config.torch_device),
        "config_hash": config.config_hash,
        **ticket.facts,
    }


def _log_outcome(run: Run, config: Config, summary: Summary) -> None:
    """The options beside the final figures, for TensorBoard's table of hyperparameters."""
    deciding = config.deciding().items()
    options = {name: value if isinstance(value, int | float | str) else str(value) for name, value in deciding}
    figures = {f"final/{name}": summary[name] for name in AVERAGED if summary[name] is not None}
    run.writer().add_hparams(options, figures, run_name=".")
