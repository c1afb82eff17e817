"""Reads and validates summaries of finished runs: those beside a run may be damaged or come from anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.errors import UserError, abbreviate
from utils.files import read_json

Percent = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Check(_Part):
    test_acc_after_finetune: Percent


class _Inverts(_Part):
    test_acc_after_finetune: Percent


class _Dense(_Part):
    test_acc_after_finetune: Percent
    gap: Percent


class _Summary(_Part):
    """The entries that other runs and a table over trials use."""

    algo: str
    config_hash: str
    trial: Count
    weights_total: Count
    weights_remaining: Count
    weights_remaining_percent: Percent
    effective_weights_remaining_percent: Percent
    gem_weights_remaining: Count | None
    test_acc_before_finetune: Percent
    test_acc_after_finetune: Percent | None
    val_acc_after_finetune: Percent | None
    seconds: Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e12)]
    checks: dict[str, _Check]
    dense: _Dense | None = None
    inverts: _Inverts | None = None


def read_summary(path: Path) -> dict[str, Any]:
    """Read a `summary.json` and validate it.

    Raises:
        UserError: it cannot be read, or is not the summary of a run.
    """
    found = read_json(path)
    try:
        summary = _Summary.model_validate(found)
    except ValidationError as error:
        one = error.errors(include_input=False)[0]
        raise UserError(
            f"{path} is not the summary of a run: {abbreviate('.'.join(map(str, one['loc'])))}: {one['msg']}"
        ) from error
    if summary.checks and summary.test_acc_after_finetune is None:
        raise UserError(f"{path} is not the summary of a run: it has checks of a ticket that was never trained")
    return found


Summary = dict[str, Any]


AVERAGED = (
    "test_acc_before_finetune", "test_acc_after_finetune", "val_acc_after_finetune", "weights_remaining_percent",
    "gem_weights_remaining", "effective_weights_remaining_percent", "seconds",
)  # fmt: skip
