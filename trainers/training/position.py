"""A stage's position and its checkpoint.

A stage stands at (epoch, step): that many epochs are finished, and that many steps of the next. `Position` keeps these
with the rows, the costs and the training's state, and asks the `Run` to store them together, so that a resumed stage
finds all of them at the same step.

A checkpoint is validated: it may come from anyone, and its checksum shows only that it is complete.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from trainers.training.batchnorm import average_statistics
from trainers.training.cost import Cost
from trainers.training.divergence import check_finite
from trainers.training.epoch_row import EpochRow
from trainers.training.training import Training
from utils.errors import UserError, abbreviate
from utils.run.run import Row, Run

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class _Cost(_Strict):
    """The `totals` of `trainers.training.cost.Cost`."""

    epochs: Count
    steps: Count
    images: Count
    exposure: dict[str, Finite]
    peak_memory_bytes: Count
    teacher_images: Count = 0


class StoredPosition(_Strict):
    """A stored position; `restore` checks its `training`.

    Attributes:
        epoch, step: how many epochs, and steps of the next one, are done.
        done: whether the stage is finished.
        seconds: that the epoch in progress had taken at this checkpoint.
        meter: summed loss, correct predictions and images of the epoch in progress.
        rows: one per finished epoch, from the stage's first.
        training: what `Training.state` returned.
        cost: of the finished epochs, if recorded.
    """

    epoch: Count
    step: Count
    done: bool
    seconds: Finite
    meter: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    rows: list[EpochRow]
    training: dict[str, Any]
    cost: _Cost | None = None


def validate_position(stored: Any, first_epoch: int, where: str) -> dict[str, Any]:
    """Check a stage's stored position and return it unchanged.

    Args:
        stored: the content of the checkpoint.
        first_epoch: of the stage.
        where: names the checkpoint, for the message.

    Raises:
        UserError: it is not a position.
    """
    try:
        position = StoredPosition.model_validate(stored)
    except ValidationError as error:
        one = error.errors(include_input=False)[0]
        place = abbreviate(".".join(map(str, one["loc"]))) or "all of it"
        raise UserError(f"{where} cannot be resumed from: {place}: {one['msg']}") from error
    if len(position.rows) != position.epoch - first_epoch or (position.step > 0 and position.meter[2] <= 0):
        raise UserError(f"{where} cannot be resumed from: its rows or counts are not those of epoch {position.epoch}")
    return stored


def restore(training: Training, stored: dict[str, Any], where: str, is_fresh: bool = True) -> None:
    """Restore a training from the state in a checkpoint.

    Args:
        training: fresh, or one that has diverged since the checkpoint.
        stored: its state in the checkpoint.
        where: names the checkpoint, for the message.
        is_fresh: whether the training is fresh; otherwise, what is empty in the checkpoint may be filled in it.

    Raises:
        UserError: it is the state of another training.
    """

    # Extra entries are allowed: a ticket's training also restores a round of imp, which stores more.
    def fits(name: str, own: Any) -> bool:
        return _is_alike(stored[name], own) if name in stored else name in training.younger_state

    wrong = next((name for name, own in training.state().items() if not fits(name, own)), None)
    if is_fresh and wrong is not None:
        raise UserError(f"{where} does not fit the run: {abbreviate(wrong)} is that of something else")
    try:
        training.load_state(stored)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{where} does not fit the run: {abbreviate(str(error))}") from error


def _is_alike(stored: Any, own: Any) -> bool:
    """Whether a stored value has the type, and a tensor the shape, of the value in a fresh training.

    What is empty or None in a fresh training may have been filled since.
    """
    if own is None:
        return stored is None or isinstance(stored, Tensor | float)
    if isinstance(own, Tensor):
        return isinstance(stored, Tensor) and stored.shape == own.shape and stored.layout == own.layout
    if isinstance(own, dict) and own and isinstance(stored, dict) and "param_groups" not in own:
        return set(own) == set(stored) and all(_is_alike(stored[name], value) for name, value in own.items())
    return type(stored) is type(own) or (isinstance(own, float) and type(stored) is int)


class Position:
    """How far a stage has come, restored from and saved to its checkpoint.

    Making one restores the training, or saves the fresh one: from then on the stage counts as begun.

    Args:
        run: where the checkpoint is stored.
        stage: its name.
        training: its state is restored in place.
        device: of the meter.
        first_epoch: at which a fresh stage starts.
        is_fresh: whether the training is; False: it has diverged since it was saved.

    Attributes:
        epoch, step, done, rows: see `StoredPosition`.
        seconds: that the epoch in progress had taken when it was resumed; 0 if it was not.
        meter: (3,) on the device, so that a step adds to it without a read.

    Raises:
        UserError: the checkpoint cannot be used for this stage.
    """

    def __init__(
        self, run: Run, stage: str, training: Training, device: torch.device, first_epoch: int, is_fresh: bool = True
    ) -> None:
        self._run, self._stage, self._training = run, stage, training
        fresh = {"epoch": first_epoch, "step": 0, "done": False, "seconds": 0.0, "meter": [0.0] * 3, "rows": []}
        stored, where = run.load(stage), f"the checkpoint of {stage} in {run.folder}"
        stored = fresh if stored is None else validate_position(stored, first_epoch, where)
        self._cost = Cost(device, stored.get("cost"))
        self.epoch, self.step, self.done = stored["epoch"], stored["step"], stored["done"]
        self.seconds = stored["seconds"]
        self.meter = torch.as_tensor(stored["meter"], dtype=torch.float32).to(device)
        self.rows: list[Row] = [EpochRow(**row).model_dump() for row in stored["rows"]]  # with columns of today
        if "training" in stored:
            restore(training, stored["training"], where, is_fresh)
        else:
            self.save()
        run.record(stage, self.rows, self._cost.totals)

    def check(self) -> None:
        """Raises: NotFinite: the loss or a parameter is no longer finite."""
        check_finite(self._training.network, self.meter[0])

    def count_epoch(self) -> None:
        """Add the epoch that was just trained to the costs."""
        training, images = self._training, int(self.meter[2])
        self._cost.count(self.step, images, training.layer_densities(), training.teacher_share)

    def save(self, started: float | None = None, finished_epoch: int | None = None) -> None:
        """Save the position; in the middle of an epoch (`started`), with the seconds it took so far.

        Args:
            started: `time.perf_counter()` when this process began or resumed the epoch; None between epochs.
            finished_epoch: the epoch that has just ended (0-based), for permanent copies; None within an epoch.

        Raises:
            NotFinite: the loss or a parameter is not finite; the previous checkpoint stays.
        """
        self.check()
        if started is not None:  # averaging is linear, so doing it now and again at the epoch's end is correct
            average_statistics(self._training.network)
        seconds = self.seconds + time.perf_counter() - started if started is not None else 0.0
        state = {
            "epoch": self.epoch, "step": self.step, "done": self.done, "seconds": seconds,
            "meter": self.meter.tolist(), "rows": self.rows, "training": self._training.state(),
            "cost": self._cost.totals,
        }  # fmt: skip
        self._run.save(self._stage, state, finished_epoch)

    def next_epoch(self, row: Row, save: bool) -> None:
        """Move to the start of the next epoch, and save the position if `save`."""
        self.rows.append(row)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.meter = torch.zeros_like(self.meter)
        if save:
            self.save(finished_epoch=self.epoch - 1)
        self._run.record(self._stage, self.rows, self._cost.totals)

    def finish(self) -> None:
        """Save the position with the stage marked as finished."""
        self.done = True
        self.save()
