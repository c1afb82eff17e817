"""Errors that a user can fix: each prints one clear message and no traceback.

`main.py` catches them and sets the exit code: `UserError` 2, `Diverged` 3, `DistributedError` 1, `Stopped` its own.
Other exceptions, except those of the operating system and of memory, are defects of the tool and keep their traceback.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.distributed.launch import launched


class UserError(Exception):
    """A problem with an option, a file or a folder that the user gave; `main.py` prints it and exits with code 2."""


class Stopped(Exception):
    """Raised when a run was asked to stop and has saved its state.

    Args:
        why: what asked it to stop, in words.
        exit_code: the exit code of the process.
        folder: of the run, which `--resume` goes on with; None: the command that was stopped goes on with it.
    """

    def __init__(self, why: str, exit_code: int, folder: Path | None = None) -> None:
        how = f"go on with: {resume_command(folder)}" if folder else "the same command goes on"
        super().__init__(f"{why}; {how}")
        self.why, self.exit_code = why, exit_code


class Diverged(Exception):
    """Raised when the loss or the weights of a run are no longer finite; its last good checkpoint is kept."""

    exit_code = 3


class DistributedError(Exception):
    """Raised when processes cannot go on training together: one was lost, or their tensors differ."""

    exit_code = 1


_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot) allocate|not enough memory|size calculation overflowed|multiplication overflow",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports too little memory, in any of PyTorch's wordings."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run."""
    return f"{launched().command} main.py --resume {shlex.quote(str(folder))}"


def printable(told: object) -> str:
    """Make a message safe for a terminal: unprintable characters, such as an escape in a file name, are spelled out."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in str(told))


def counted(number: int, noun: str) -> str:
    """Return `1 epoch`, `2 epochs`, `1,000 epochs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def first_of(names: Sequence[str], most: int = 6, between: str = ", ") -> str:
    """Return `a, b and 4 more`, with the first `most` names."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, number: int, level: int) -> str:
        digits = number.bit_length() * 3 // 10  # Python refuses to write out thousands of digits
        return super().repr_int(number, level) if digits < _LONGEST else f"a number of about {digits} digits"


_LONGEST = 120


def abbreviate(given: Any) -> str:
    """Shorten any value for a message, because its own text may be very long."""
    if not isinstance(given, str):
        return _Short().repr(given)
    return printable(given if len(given) <= _LONGEST else f"{given[: _LONGEST // 2]}...{given[-_LONGEST // 2 :]}")


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to `given`; None if none is near.

    Args:
        given: what a user wrote; its first 120 characters are compared, in lower case.
        known: the names that exist; those with a difflib ratio (in [0, 1]) of at least 0.6 are near.
    """
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given[:_LONGEST].lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[near[0]] if near else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name nearest to `given`, or "" if none is near."""
    near = nearest(given, known)
    return "" if near is None else f"; did you mean '{near}'?"
