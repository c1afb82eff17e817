"""Run the missing sanity checks of finished runs.

`--only_sanity` is this mode. Tickets come from the runs' files; control networks are trained by each run's own options,
as stages of that run, and its summary is rewritten with them.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch

from args_helper import Config, parse_args
from data.load import load_data
from models.build import build_model
from trainers.checks.controls import CHECKS
from trainers.pipeline import report_trials, run_trials, train_controls
from trainers.results.beginnings import devices
from trainers.results.run_folder import opened, resolved
from trainers.results.screens import last_screen
from trainers.results.summarise import related
from trainers.results.summary import read_summary
from trainers.results.trials import write_summary
from trainers.tickets.file import TICKET, read_ticket
from trainers.training.compile import prepared
from utils.errors import Diverged, Stopped, UserError
from utils.files import files_below

MAY_DIFFER = ("data", "log_dir", "device", "gpu", "no_cuda", "threads", "workers", "compile", "max_time")
"""Options that the command may give otherwise than the runs had them: where to compute, and from what."""


def check_runs(config: Config) -> None:
    """Run the missing sanity checks of every finished run under `sanity_folder`; without it, check `ticket`.

    Raises:
        UserError: there are no finished runs, or some cannot be checked, perhaps because a control network
            diverges (raised when all others are).
        Stopped: the process was asked to stop; the current run is saved, and the same command resumes it.
    """
    if config.sanity_folder is None:
        run_trials(config)
        return
    root = Path(config.sanity_folder)
    folders = [path.parent for path in files_below(root, "summary.json") if (path.parent / "config.yml").is_file()]
    if not folders:
        raise UserError(f"sanity_folder {root}: there is no finished run (a folder with a summary.json) in it")
    problems, code = [], 0
    for folder in folders:
        if code:  # the signal came after the last step of the run before
            raise Stopped(f"stopped before {folder}", code)
        try:
            code = _check_run(folder, config)
        except (UserError, Diverged) as error:
            problems.append(f"{folder}: {error}")
        except Stopped as stopped:  # the run itself is finished: resuming it would train no check
            raise Stopped(stopped.why, stopped.exit_code) from stopped
    if problems:
        raise UserError("\n  ".join(["not all runs could be checked; all others are:", *problems]))


def _check_run(folder: Path, asked: Config) -> int:
    """Train the control networks of a finished run's ticket, by the run's options except those of `MAY_DIFFER`.

    Returns:
        The exit code to stop with if the process was asked to stop too late for the run to heed it; else 0.
    """
    summary = read_summary(folder / "summary.json")
    given = [(f"--{name}", str(getattr(asked, name))) for name in MAY_DIFFER if name in asked.model_fields_set]
    stored = parse_args(["--resume", str(folder), *chain(*given)])
    config = resolved(stored.model_copy(update={"skip_sanity_checks": False}))
    if summary["weights_remaining"] == summary["weights_total"] or set(CHECKS) <= set(summary["checks"]):
        print(f"{folder}: no check is missing")
        return 0
    if summary["test_acc_after_finetune"] is None:
        print(f"{folder}: its ticket was never trained, so that there is nothing to compare a check to")
        return 0
    ticket = read_ticket(folder / TICKET)[0].to(torch.device(config.torch_device))
    data = load_data(config)
    net = build_model(config, data.spec).to(config.torch_device)
    config = prepared(config, net, data)
    with opened(config, folder, data) as run:
        checks = train_controls(run, net, ticket, data, config)
        seconds = summary["search_seconds"] + summary["finetune_seconds"] + run.seconds("check")
        own = {"checks": checks, "seconds": seconds, "device": devices(folder)}
        written = write_summary(folder, related({**summary, **own}, config))
        print(last_screen(written, folder, run.log_folder))
        report_trials(config, folder)
        return run.asked("check", 0)[0]
