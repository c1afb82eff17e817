"""What goes wrong in a way its user can mend: one clear message, never a traceback."""

from __future__ import annotations

import difflib
import re
import reprlib
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.distributed.launch import launched


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


class SweepStopped(Stopped):
    """A worker of a sweep that was asked to stop, by way of its run or itself.

    Args:
        exit_code: of its run.
    """

    def __init__(self, exit_code: int) -> None:
        Exception.__init__(self, "the sweep was stopped; the same command goes on")
        self.exit_code = exit_code


class DistributedError(Exception):
    """Processes that train together and cannot go on so: one of them is lost, or holds something else."""

    exit_code = 1


_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot) allocate|not enough memory|size calculation overflowed|multiplication overflow",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, in whichever of PyTorch's ways."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"{launched().command} main.py --resume {shlex.quote(str(folder))}"


def printable(told: object) -> str:
    """A message as a terminal may be given it: what is not to be printed, such as an escape in a name, is spelled."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in str(told))


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, number: int, level: int) -> str:
        digits = number.bit_length() * 3 // 10  # Python refuses to write out numbers of many thousands
        return super().repr_int(number, level) if digits < _LONGEST else f"a number of about {digits} digits"


_LONGEST = 120


def abbreviate(given: Any) -> str:
    """A value in a message: in short, whatever it is, where its own text might be without end."""
    if not isinstance(given, str):
        return _Short().repr(given)
    return printable(given if len(given) <= _LONGEST else f"{given[: _LONGEST // 2]}...{given[-_LONGEST // 2 :]}")


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name nearest to `given`; None where none is near."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given[:_LONGEST].lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[near[0]] if near else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `given`, or nothing where none is near."""
    near = nearest(given, known)
    return "" if near is None else f"; did you mean '{near}'?"
