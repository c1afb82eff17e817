"""Run the experiments of a sweep file with one or many workers, and compare them in a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from args_helper import Config
from trainers.pipeline import report_trials
from trainers.results.run_folder import decided, folder_of
from trainers.results.trials import finished_trials
from trainers.sweeping.comparison import write_comparison
from trainers.sweeping.grid import Trials
from trainers.sweeping.plan import Planned, plan
from trainers.sweeping.sweep_file import Study
from trainers.sweeping.units import Claims
from trainers.sweeping.worker import work
from utils.errors import UserError
from utils.markdown import markdown_table
from utils.run.stopping import seconds_of

if TYPE_CHECKING:
    from trainers.sweeping.search import Search


def run_sweep(config: Config) -> None:
    """Work on the sweep in the file `sweep` until all its runs are finished, then compare them.

    `trainers.sweeping.sweep_file` describes the file; flags override it. Each process that is started with the same
    command takes runs that no other has claimed, that are not finished and that have not failed. With `dry_run` it only
    lists the runs.

    Raises:
        UserError: the file or a run's options are wrong (raised before the first run), or some runs failed (raised when
            all others are finished).
        Stopped: the process was asked to stop; the same command resumes.
    """
    if config.config:  # its options would override those of all runs
        raise UserError(f"--config {config.config}: a sweep has its options in {config.sweep}, and flags override them")
    if config.resume:
        raise UserError(f"--resume {config.resume}: the same command goes on with a sweep; leave --resume out")
    if config.name:
        told = "the runs of a sweep have names of their own; leave --name out (--results_dir moves the sweep)"
        raise UserError(f"--name: {told}")
    path = Path(config.sweep)
    flags = {name: getattr(config, name) for name in config.model_fields_set - {"sweep", "dry_run"}}
    planned, study = plan(path, flags)
    if config.dry_run:
        print(_listed(planned, study))
        return
    search = _search() if any(run.sought for run in planned) else None
    claims = Claims(Path(planned[0].config.results_dir) / path.stem)
    jobs = [search(run, study, claims) if run.sought else Trials(run.name, run.config, claims) for run in planned]
    work(jobs, claims, config.max_time and seconds_of(config.max_time))
    _compare(jobs, claims)
    if claims.problems:
        problems = "\n  ".join(claims.problems.values())
        raise UserError(f"not all of the sweep {path} could be run; all else is finished:\n  {problems}")


def _listed(planned: Sequence[Planned], study: Study) -> str:
    """Return a table of the runs: how many trials each takes, and how many of these are finished."""
    rows = []
    for run in planned:
        config = decided(run.config)
        there = finished_trials(folder_of(config), config.config_hash).values()
        finished = sum(summary["trial"] in config.trials for summary in there)
        trials = str(config.num_trial) if study.confirm or not run.sought else "none"
        if run.sought:
            trials = f"{run.combinations(study.trials) or study.trials} to find {', '.join(run.sought)}, then {trials}"
        target = f"{config.target_sparsity:g}" if config.has_target else "–"
        rows.append([run.name, config.algo, target, trials, "–" if run.sought else str(finished)])
    return markdown_table(["run", "algorithm", "weights remaining (%)", "trials", "of them finished"], rows)


def _search() -> type[Search]:
    """Return the class of jobs with a search; only this class needs Optuna.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        from trainers.sweeping.search import Search
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "optuna":
            raise
        raise UserError("a sweep with a search needs Optuna, which is not installed: pip install optuna") from error
    return Search


def _compare(jobs: Sequence[Trials | Search], claims: Claims) -> None:
    """Write the table of all finished runs, whichever worker ran them, and print what the searches found."""
    runs = [job if isinstance(job, Trials) else job.found for job in jobs]
    experiments = {run.name: run.experiment for run in runs if run is not None and run.experiment[0].parent.is_dir()}
    for folder, config in experiments.values():
        report_trials(config, folder)  # a dense network may have been finished after the ticket
    if text := write_comparison(claims.folder, experiments):
        print(text)
    for job in jobs:
        if not isinstance(job, Trials) and job.outcome:
            print(job.outcome)
