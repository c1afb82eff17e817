"""What goes wrong in a way its user can mend: one clear message, never a traceback."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

from utils.launch import launched


class UserError(Exception):
    """A problem with what was given (an option, a file, a folder); `main.py` prints it and exits with code 2."""


class Stopped(Exception):
    """A run that was asked to stop, and has saved itself.

    Args:
        why: what asked it, in words.
        exit_code: for the process to end with.
        folder: the run's.
    """

    def __init__(self, why: str, exit_code: int, folder: Path) -> None:
        super().__init__(f"{why}; go on with: {resume_command(folder)}")
        self.exit_code = exit_code


class Diverged(Exception):
    """A run whose loss or weights are no longer finite; its last good checkpoint is kept."""

    exit_code = 3


class RanksApart(Exception):
    """Processes that train together and cannot go on so: one of them is lost, or holds something else."""

    exit_code = 1


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"{launched().command} main.py --resume {shlex.quote(str(folder))}"


def meant(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `given`, or nothing where none is near."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.6)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""
