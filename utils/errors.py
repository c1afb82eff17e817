"""What goes wrong in a way its user can mend: one clear message, never a traceback."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """A problem with what was given (an option, a file, a folder); `main.py` prints it and exits with code 2."""


class Stopped(Exception):
    """A run that was asked to stop, and has saved itself.

    Args:
        signum: the signal that asked (SIGINT, SIGTERM).
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def meant(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `given`, or nothing where none is near."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
