"""Reads and validates summaries of finished runs: those beside a run may be damaged or come from anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.errors import UserError, abbreviate
from utils.files import read_json

Summary = dict[str, Any]
"""A whole `summary.json`."""

Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e30)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Accuracy(_Part):
    """The result of a network that was trained for comparison with the ticket."""

    test_acc_after_finetune: Percent


class Reference(Accuracy):
    """The result of the dense network; `gap` says how far the ticket is below it."""

    gap: Annotated[float, Field(ge=-100, le=100)]


class Spent(_Part):
    """The costs of the search or of the fine-tuning."""

    epochs: Count
    images: Count = 0
    seconds: Amount
    training_flops_dense: Amount
    training_flops_masked: Amount
    scoring_flops: Amount = 0.0
    peak_memory_bytes: Count = 0


class Outcome(_Part):
    """The fields of a `summary.json` that the report uses; accuracies and densities in percent.

    Those with a default are missing from summaries of early versions.
    """

    config_hash: str
    trial: Count
    classes: Annotated[int, Field(ge=1)]
    device: str = "unknown device"
    seconds: Amount = 0.0
    weights_total: Annotated[int, Field(ge=1, lt=2**63)]
    weights_remaining_percent: Percent
    effective_weights_remaining_percent: Percent | None = None
    layers: dict[str, Annotated[tuple[Count, Annotated[int, Field(ge=1)]], Field(strict=False)]] = {}
    test_acc_before_finetune: Percent
    test_acc_after_finetune: Percent | None
    checks: dict[str, Accuracy] = {}
    dense: Reference | None = None
    inverts: Accuracy | None = None
    cost: dict[str, Spent] = {}


class _Sibling(Outcome):
    """What other runs, and the table over trials, use besides."""

    algo: str
    weights_remaining: Count
    gem_weights_remaining: Count | None
    val_acc_after_finetune: Percent | None
    effective_weights_remaining_percent: Percent
    seconds: Amount
    checks: dict[str, Accuracy]


Kind = TypeVar("Kind", bound=Outcome)


def validated_summary(kind: type[Kind], path: Path) -> Kind:
    """Read the fields of `kind` from a `summary.json`.

    Raises:
        UserError: it cannot be read, or is not the summary of a run.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        one = error.errors(include_input=False)[0]
        field = abbreviate(".".join(map(str, one["loc"]))) or "the whole"
        raise UserError(f"{path} is not the summary of a run: {field}: {one['msg']}") from error


def read_summary(path: Path) -> Summary:
    """Read a whole `summary.json` and validate what other runs use of it.

    Raises:
        UserError: it cannot be read, or is not the summary of a run.
    """
    summary = validated_summary(_Sibling, path)
    if summary.checks and summary.test_acc_after_finetune is None:
        raise UserError(f"{path} is not the summary of a run: it has checks of a ticket that was never trained")
    return read_json(path)


AVERAGED = (
    "test_acc_before_finetune", "test_acc_after_finetune", "val_acc_after_finetune", "weights_remaining_percent",
    "gem_weights_remaining", "effective_weights_remaining_percent", "seconds",
)  # fmt: skip
