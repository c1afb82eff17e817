"""The trials of a run without a search, for one or many workers."""

from __future__ import annotations

from pathlib import Path

from args_helper import Config
from trainers.results.references import lacks_dense
from trainers.results.run_folder import is_finished
from trainers.sweeping.units import Claims, Task, Unit
from utils.errors import UserError

WAY_OUT = "move it away, or give the run another name in the file"
"""What to do about a folder that is taken: a sweep takes no `--name`."""


class Trials:
    """The unfinished trials of one run; a `Job` (see `trainers.sweeping.units`).

    Args:
        name: of the run.
        config: of all its trials.
        claims: shared by all workers.
    """

    def __init__(self, name: str, config: Config, claims: Claims) -> None:
        self.name = name
        self._open = [
            Unit.of(f"{name}, trial {number}", config.model_copy(update={"trial_num": number, "num_trial": 1}))
            for number in config.trials
        ]
        self._first = self._open[0]
        self._claims = claims

    @property
    def over(self) -> bool:
        """Whether every trial is finished or has failed."""
        return not self._open

    @property
    def experiment(self) -> tuple[Path, Config]:
        """The folder of the first trial, and its options as resolved on this machine."""
        return self._first.folder, self._first.config

    def take(self) -> Task | None:
        """Claim the next trial; None: all are finished, have failed, or are claimed by other workers."""
        for unit in tuple(self._open):
            claim = self._claims.claim(unit)
            if claim is None:
                if unit.name in self._claims.problems:
                    self._open.remove(unit)
                continue
            try:  # only now: before the claim, another worker may have finished it
                finished = is_finished(unit.folder, unit.config, resumed=True, way_out=WAY_OUT)
                if not finished or lacks_dense(unit.config):
                    return Task(unit, claim, unit.name, done=lambda _ended_early, unit=unit: self._open.remove(unit))
                print(f"{unit.folder} is finished: nothing to do", flush=True)
            except UserError as error:
                self._claims.problems[unit.name] = str(error)
            claim.release()
            self._open.remove(unit)
        return None
