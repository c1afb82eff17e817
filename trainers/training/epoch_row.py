"""A row of the table of epochs: the one description of its columns.

The loop makes a row per epoch. Rows are part of a checkpoint, which is checked by this class; the run writes them to
`acc_and_sparsity.csv`, which others read by `read_epochs`, and to TensorBoard.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def _column(meaning: str, tag: str | None = None, **default: Any) -> Any:
    """Describe a column; `tag` is its name in TensorBoard. A column has a default where not every stage has it."""
    return Field(description=meaning, json_schema_extra={"tag": tag}, **default)


class EpochRow(BaseModel):
    """A row, in the order of the table's columns; accuracies are top-1, in percent."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    phase: str = _column("the stage")
    epoch: Annotated[int, Field(ge=0)] = _column("0-based in its stage")
    lr: float = _column("learning rate", "lr")
    test_acc_before_rounding: Percent | None = _column(
        "with the forward pass as trained", "accuracy/test_before_rounding", default=None
    )
    test_acc: Percent = _column("of the rounded mask, or of the trained network", "accuracy/test")
    val_acc: Percent | None = _column("on the images held out of training; None without any", "accuracy/val")
    train_acc: Percent = _column("over the epoch's training batches", "accuracy/train")
    train_loss: float = _column("mean over the epoch's training images, without the penalty", "loss/train")
    regularization_loss: float = _column(
        "λR(s) at the end of the epoch; of cts, multiplier times excess", "loss/regularization", default=0.0
    )
    model_sparsity: Percent = _column("percent of the weights in the evaluated network", "weights_remaining_percent")
    seconds: float = _column("of the epoch with its evaluation", "seconds")
    lmbda: float | None = _column("λ, the strength of the penalty, in the epoch", "lmbda", default=None)
    threshold: float | None = _column("score up to which rounding switches a weight off", "threshold", default=None)


TAGS = {name: tag for name, field in EpochRow.model_fields.items() if (tag := field.json_schema_extra["tag"])}
"""Column -> its name in TensorBoard."""


def read_epochs(path: Path) -> tuple[list[EpochRow], str | None]:
    """Read a table of epochs up to its first bad row.

    Args:
        path: a CSV file, which its run may be about to replace, or anyone may have written; a missing one has no rows.

    Returns:
        The rows, and why not all could be read; None: they could.
    """
    epochs: list[EpochRow] = []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a number that is cut off still reads as a number
        for row in csv.DictReader(io.StringIO(whole)):
            given = {name: value for name in EpochRow.model_fields if (value := row.get(name))}
            epochs.append(EpochRow.model_validate({"val_acc": None, **given}, strict=False))
    except FileNotFoundError:
        return epochs, None
    except ValidationError:
        return epochs, "a metric is missing or no number"
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return epochs, str(error)
    return epochs, None if whole == text else "its last line is cut off"
