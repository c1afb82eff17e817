"""What goes wrong in a way its user can mend: one clear message, never a traceback."""

from __future__ import annotations

import difflib
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A problem with what was given (an option, a file, a folder); `main.py` prints it and exits with code 2."""


class Stopped(Exception):
    """A run that was asked to stop, and has saved itself.

    Args:
        signum: the signal that asked (SIGINT, SIGTERM).
        folder: the run's.
    """

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; go on with: {resume_command(folder)}")
        self.exit_code = 128 + signum


class SweepStopped(Stopped):
    """A worker of a sweep that was asked to stop, by way of its run or itself.

    Args:
        exit_code: of its run.
    """

    def __init__(self, exit_code: int) -> None:
        Exception.__init__(self, "the sweep was stopped; the same command goes on")
        self.exit_code = exit_code


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"python main.py --resume {shlex.quote(str(folder))}"


def meant(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `given`, or nothing where none is near."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""
