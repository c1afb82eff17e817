"""The shared state of a sweep's workers: which runs are claimed, and which have failed.

The hooks, in order: a worker calls `Job.take` and gets a `Task`. While the task's process runs, it calls
`should_stop_early` about twice a second. Then it calls `done` or `diverged`; `Claims.failed` records any other failure,
and a run that was stopped is left for the next worker. Last, it releases the claim. If the worker is killed, the
operating system frees the claim, once the run's process has ended too.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote_plus

from args_helper import Config
from trainers.results.run_folder import decided, folder_of
from trainers.sweeping.config_files import KEPT_BY_A_RUN, stated
from utils.errors import UserError
from utils.files import read_json, write_atomic, write_json
from utils.run.lock import Claim, is_locked, locked

DIVERGED = 3
"""Exit code of a run whose loss became NaN or infinite."""
WHERE = ("device", "gpu", "no_cuda")
"""Options that say where a run computes: each worker has its own."""
LONGEST = 100
"""Bytes of a unit's name that the names of its files keep: file systems allow 255 in all."""
WORKER = f"{socket.gethostname()}-{os.getpid()}"


class Unit(NamedTuple):
    """One trial of one run: a worker claims it, and a process runs it.

    Attributes:
        name: unique in the sweep.
        asked: its options, with `auto` unresolved.
        config: its options as resolved on this machine.
    """

    name: str
    asked: Config
    config: Config

    @classmethod
    def of(cls, name: str, config: Config) -> Unit:
        """Make the unit of a config of one trial.

        Raises:
            UserError: this machine lacks the device that the config names.
        """
        return cls(name, config, decided(config))

    @property
    def folder(self) -> Path:
        return folder_of(self.asked)


@dataclass
class Task:
    """A unit that this worker has claimed, and what to call while and after it runs.

    Attributes:
        heading: a description for the screen.
        should_stop_early: called repeatedly while it runs; True ends it early.
        done: called when it has ended normally or early; the argument says whether early.
        diverged: called when its loss became NaN or infinite; returns whether that counts as a failure.
    """

    unit: Unit
    claim: Claim
    heading: str
    should_stop_early: Callable[[], bool] = lambda: False
    done: Callable[[bool], None] = lambda ended_early: None
    diverged: Callable[[], bool] = lambda: True


class Job(Protocol):
    """A source of units to run."""

    over: bool
    """Whether all its units are finished or have failed."""

    def take(self) -> Task | None:
        """Claim the next unit; None: there is none at present."""
        ...


class Claims:
    """Files through which the workers of a sweep know of one another.

    Args:
        folder: of the sweep, among the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shared = folder / ".sweep"
        self.problems: dict[str, str] = {}
        """Unit -> why it could not be run, as far as this worker knows."""
        self._shared.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._shared) as mark:
            # The time of the file system, whose clock all workers share.
            self._began = os.fstat(mark.fileno()).st_mtime_ns

    def claim(self, unit: Unit) -> Claim | None:
        """Claim a unit; None: another process is running it, or it has failed."""
        claim = Claim.of(self._place("claims", unit.name, ".lock"))
        if claim is None:
            return None
        if self._has_failed(unit) or (unit.folder.is_dir() and is_locked(unit.folder)):
            claim.release()
            return None
        return claim

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Keep other workers out of the part of this name while the context is open; for short work only.

        It waits without a limit. A worker that dies inside frees it.
        """
        part = self._place("parts", name, "")
        part.mkdir(parents=True, exist_ok=True)
        return locked(part, patience=-1)

    def options_file(self, unit: Unit, seconds: float | None = None) -> Path:
        """Write the unit's options, with a time limit, to a file of this worker; the unit's process reads it."""
        path = self._place("options", f"{unit.name}@{WORKER}", ".yml")
        # Of a run that another machine began, this one may lack the device.
        own: dict[str, Any] = {name: getattr(unit.config, name) for name in WHERE}
        if seconds is not None:
            own["max_time"] = f"{int(seconds)}s"
        write_atomic(path, stated(unit.asked.model_copy(update=own), also=KEPT_BY_A_RUN))
        return path

    def failed(self, unit: Unit, code: int) -> None:
        """Record, for all current workers, that the unit's process failed with this exit code."""
        record = {"exit_code": code, "config_hash": unit.config.config_hash, "worker": WORKER}
        path = self._place("failed", unit.name, ".json")
        path.unlink(missing_ok=True)  # the same content would not be written again, and the time of writing counts
        write_json(path, record)
        self.problems[unit.name] = self._problem(unit, code)

    def _has_failed(self, unit: Unit) -> bool:
        """Whether it failed since this worker began, or ever diverged: it would then diverge again, whoever runs it."""
        path = self._place("failed", unit.name, ".json")
        try:
            record, written = read_json(path), path.stat().st_mtime_ns
        except (UserError, OSError):
            return False
        if record["config_hash"] != unit.config.config_hash:
            return False
        if written < self._began and record["exit_code"] != DIVERGED:
            return False
        self.problems[unit.name] = self._problem(unit, record["exit_code"])
        return True

    def _problem(self, unit: Unit, code: int) -> str:
        if code == DIVERGED:
            record = self._place("failed", unit.name, ".json")
            return f"{unit.name} diverged: its loss became NaN or infinite; to run it once more, remove {record}"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{unit.name} {how}; what it said stands above, or in the output of another worker"

    def _place(self, kind: str, name: str, ending: str) -> Path:
        short = quote_plus(name, safe=",@=")  # no two names have the same files
        if len(short) > LONGEST:
            short = f"{short[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return self._shared / kind / (short + ending)
