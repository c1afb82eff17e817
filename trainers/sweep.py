"""Many runs by one file, by one worker or many, and the table that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from args_helper import Config
from trainers.pipeline import report_trials
from trainers.sanity import CHECKS
from trainers.sweeping.grid import Trials
from trainers.sweeping.plan import Planned, plan
from trainers.sweeping.spec import Study
from trainers.sweeping.units import Board
from trainers.sweeping.worker import work
from utils.comparison import comparison_table, write_comparison
from utils.errors import UserError
from utils.stopping import seconds_of

if TYPE_CHECKING:
    from trainers.sweeping.study import Search


def run_sweep(config: Config) -> None:
    """Be a worker of the sweep in the file `sweep`: run what is to be run until all is finished, then compare it.

    The file has `options` that all runs share, `runs` (a name -> what that one differs in), `vary` (an option -> the
    values every run is run with) and `search` (an option -> where it is searched for, as `study` says; see
    `trainers.sweeping.spec`); a run that states an option itself is neither varied nor searched in it. Flags beat the
    file. Every process started with the same command takes what no other has taken, finished or given up.

    Raises:
        UserError: anything wrong with the file or a run's options, before the first is run; or, when all else is
            finished, that some runs could not be run.
        SweepStopped: the process was asked to stop; the same command goes on.
    """
    path = Path(config.sweep)
    flags = {name: getattr(config, name) for name in config.model_fields_set - {"sweep", "config"}}
    planned, study = plan(path, flags)
    search = _search() if any(run.sought for run in planned) else None
    board = Board(Path(planned[0].config.results_dir) / path.stem)
    jobs = [_job(run, study, board, search) for run in planned]
    work(jobs, board, config.max_time and seconds_of(config.max_time))
    _compare(jobs, board)
    if board.problems:
        problems = "\n  ".join(board.problems.values())
        raise UserError(f"not all of the sweep {path} could be run; all else is finished:\n  {problems}")


def _search() -> type[Search]:
    """The kind of job that searches; it alone needs Optuna.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        from trainers.sweeping.study import Search
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "optuna":
            raise
        raise UserError("a sweep with a search needs Optuna, which is not installed: pip install optuna") from error
    return Search


def _job(run: Planned, study: Study, board: Board, search: type[Search] | None) -> Trials | Search:
    return search(run, study, board) if search and run.sought else Trials(run.name, run.config, board)


def _compare(jobs: Sequence[Trials | Search], board: Board) -> None:
    """Write the table of all that is finished, by whichever worker, and say what the searches found."""
    runs = [job if isinstance(job, Trials) else job.found for job in jobs]
    experiments = {run.name: run.experiment for run in runs if run is not None and run.experiment[0].parent.is_dir()}
    for folder, config in experiments.values():
        report_trials(config, folder)  # a dense network may have been finished after the ticket
    hashed = {name: (folder, config.config_hash) for name, (folder, config) in experiments.items()}
    if table := comparison_table(hashed, tuple(CHECKS)):
        print(write_comparison(board.folder, table))
    for job in jobs:
        if not isinstance(job, Trials) and job.outcome:
            print(job.outcome)
