"""A sweep worker: take one unit after another and run each in its own process, until none is left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainers.sweeping.units import DIVERGED, Claims, Job, Task
from utils.errors import Stopped
from utils.run.stopping import OUT_OF_TIME, SIGNALS, STARTED, handled_by

STOPPED = "the sweep was stopped"
MAIN = Path(__file__).resolve().parents[2] / "main.py"
LOOK_EVERY = 0.5
"""Seconds between two checks of a run in progress."""
WAIT = 2.0
"""Seconds between two checks of the units that other workers run."""


def work(jobs: Sequence[Job], claims: Claims, limit: float | None = None) -> None:
    """Run the units of all jobs until all are over; wait for units of other workers, as these may die.

    Args:
        jobs: in the order in which to work on them.
        claims: shared by all workers.
        limit: seconds this process may take from its start; each run gets what is left of them.

    Raises:
        Stopped: this worker, or its run, was asked to stop, or ran out of time.
    """
    waiting = False
    asked: list[int] = []
    with handled_by(lambda signum, _frame: asked.append(signum)):
        while not all(job.over for job in jobs):
            if asked:
                raise Stopped(STOPPED, 128 + asked[0])
            left = None if limit is None else STARTED + limit - time.monotonic()
            if left is not None and left < 1:
                raise Stopped(STOPPED, OUT_OF_TIME)
            offered = enumerate(jobs, start=1)
            number, task = next(((n, task) for n, job in offered if not job.over and (task := job.take())), (0, None))
            if task is not None:
                waiting = False
                print(f"== {number} of {len(jobs)}: {task.heading}", flush=True)
                _run(task, claims.options_file(task.unit, left), claims, asked)
            elif not all(job.over for job in jobs):
                if not waiting:
                    print("== all that is left is in work by other workers: waiting for them", flush=True)
                waiting = True
                time.sleep(WAIT)


def _run(task: Task, options: Path, claims: Claims, asked: list[int]) -> None:
    """Run a unit, record its outcome, and release its claim.

    Raises:
        Stopped: the unit's process, or this worker, was asked to stop.
    """
    try:
        code, ended_early = run_process(task, options, asked)
        if code == 0 or ended_early:
            task.done(code != 0)  # 0: it had finished by the time it was asked to stop
        elif code == DIVERGED:
            if task.diverged():
                claims.failed(task.unit, code)
        elif asked or code == OUT_OF_TIME or -code in SIGNALS or code - 128 in SIGNALS:
            raise Stopped(STOPPED, code if code > 0 else 128 - code)  # below 0: stopped before it had begun
        else:
            claims.failed(task.unit, code)
        if asked:
            raise Stopped(STOPPED, code or 128 + asked[0])
    finally:
        options.unlink(missing_ok=True)
        task.claim.release()


def run_process(task: Task, options: Path, asked: list[int]) -> tuple[int, bool]:
    """Run a unit in its own process, and forward to it the signals that this process receives.

    Args:
        task: the unit, claimed.
        options: a file with its options.
        asked: the signals that this process has received; grows.

    Returns:
        The exit code (below 0: the signal that killed the process), and whether it was ended early.
    """
    command = [sys.executable, str(MAIN), "--config", str(options)]
    if (task.unit.folder / "config.yml").is_file():
        command += ["--resume", str(task.unit.folder)]
    # In its own session: otherwise Ctrl-C would reach it twice, and the second signal stops a run without saving.
    process = subprocess.Popen(command, start_new_session=True, pass_fds=task.claim.handles)
    passed_on, ended_early = 0, False
    try:
        while process.poll() is None:
            while passed_on < len(asked):
                process.send_signal(asked[passed_on])
                passed_on += 1
            if not passed_on and not ended_early and task.should_stop_early():
                ended_early = True
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return process.returncode, ended_early
