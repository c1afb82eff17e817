"""What a checkpoint of a stage has to look like: it may be anyone's, and its checksum says only that it is whole."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from trainers.training import Training
from utils.errors import UserError, shown

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class _Cost(_Strict):
    """The `figures` of `trainers.ledger.Cost`."""

    epochs: Count
    steps: Count
    images: Count
    exposure: dict[str, Finite]
    peak_memory_bytes: Count
    teacher_images: Count = 0


class _Row(_Strict):
    """A row of the table."""

    phase: str
    epoch: Count
    lr: float
    test_acc_before_rounding: float | None
    test_acc: float
    val_acc: float | None
    train_acc: float
    train_loss: float
    regularization_loss: float
    model_sparsity: float
    seconds: float


class StoredPosition(_Strict):
    """How far a stage had come, and `training`, which is `take_up`'s to check."""

    epoch: Count
    step: Count
    done: bool
    seconds: Finite
    meter: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    rows: list[_Row]
    training: dict[str, Any]
    cost: _Cost | None = None


def checked_position(stored: Any, first_epoch: int, where: str) -> dict[str, Any]:
    """A stage's stored position, as it was stored.

    Args:
        stored: what was in the checkpoint.
        first_epoch: of the stage.
        where: which checkpoint, for the message.

    Raises:
        UserError: it is no position.
    """
    try:
        position = StoredPosition.model_validate(stored)
    except ValidationError as error:
        one = error.errors(include_input=False)[0]
        place = shown(".".join(map(str, one["loc"]))) or "all of it"
        raise UserError(f"{where} cannot be gone on from: {place}: {one['msg']}") from error
    if len(position.rows) != position.epoch - first_epoch or (position.step > 0 and position.meter[2] <= 0):
        raise UserError(f"{where} cannot be gone on from: its rows or counts are not those of epoch {position.epoch}")
    return stored


def take_up(training: Training, stored: dict[str, Any], where: str) -> None:
    """Load what `training.state` returned when it was stored.

    Args:
        training: fresh.
        stored: the state.
        where: which checkpoint, for the message.

    Raises:
        UserError: it is the state of something else.
    """
    # A ticket's training takes up a round of imp, which has more to say than it needs.
    own = training.state().items()
    wrong = next((name for name, value in own if name not in stored or not _is_alike(stored[name], value)), None)
    if wrong is not None:
        raise UserError(f"{where} does not fit the run: {shown(wrong)} is that of something else")
    try:
        training.load_state(stored)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{where} does not fit the run: {shown(str(error))}") from error


def _is_alike(stored: Any, own: Any) -> bool:
    """Whether a value is of the kind, and a tensor of the shape, that a fresh training has in its place.

    What is empty, or None, in a fresh one may have been filled since.
    """
    if own is None:
        return stored is None or isinstance(stored, Tensor | float)
    if isinstance(own, Tensor):
        return isinstance(stored, Tensor) and stored.shape == own.shape and stored.layout == own.layout
    if isinstance(own, dict) and own and isinstance(stored, dict) and "param_groups" not in own:
        return set(own) == set(stored) and all(_is_alike(stored[name], value) for name, value in own.items())
    return type(stored) is type(own) or (isinstance(own, float) and type(stored) is int)
