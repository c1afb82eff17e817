"""The one description of `summary.json`, by which runs write it, and other runs and the report read it.

The summaries beside a run may be damaged or come from anyone: all that is used of them is validated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.errors import UserError, abbreviate
from utils.files import read_json

Summary = dict[str, Any]
"""A whole `summary.json`: the fields of `Outcome`, and what the algorithm adds (`facts` of its ticket)."""

Percent = Annotated[float, Field(ge=0, le=100)]
Points = Annotated[float, Field(ge=-100, le=100)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[int | float, Field(ge=0, le=1e30)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Accuracy(_Part):
    """The result of a network that was trained for comparison with the ticket, in percent."""

    test_acc_after_finetune: Percent


class Reference(Accuracy):
    """The result of the dense network.

    Attributes:
        gap: how many points the ticket is below it.
        trained_alike: whether it was trained as the ticket was.
    """

    gap: Points
    trained_alike: bool = True


class Spent(_Part):
    """The costs of the search or of the fine-tuning; see `trainers.training.cost`.

    Attributes:
        epochs, steps, images: that it trained for, and on.
        seconds: of the wall clock.
        training_flops_dense: of all training steps, pruned weights included.
        training_flops_masked: the same with each layer counted by its density at the time.
        scoring_flops: of the passes that score weights once, outside of training.
        peak_memory_bytes: the most that was allocated.
    """

    epochs: Count
    steps: Count = 0
    images: Count = 0
    seconds: Amount
    training_flops_dense: Amount
    training_flops_masked: Amount
    scoring_flops: Amount = 0.0
    peak_memory_bytes: Count = 0


class Outcome(_Part):
    """A finished run, in the order of its `summary.json`; accuracies and densities in percent.

    Fields with a default are missing from summaries of early versions, or not needed by those who read them.

    Attributes:
        algo, arch, dataset, classes: what was run.
        trial, seed: its number, and the seed of its random streams.
        target_sparsity: weights that were to remain.
        weights_total: all prunable weights.
        weights_remaining: those of the ticket that is trained.
        gem_weights_remaining: those that the search had switched on; None for other algorithms than Gem-Miner.
        effective_weights_remaining: those that are connected to input and output.
        dead_layers, thin_layers: layers without a weight, and with less than one weight a filter.
        layers: layer -> (weights that remain, all weights).
        as_drawn: whether no weight was trained before the fine-tuning; None in earlier versions.
        test_acc_before_finetune, val_acc_before_finetune: before the fine-tuning; None where nothing is held out.
        test_acc_after_finetune, val_acc_after_finetune: after the training of the ticket; None without training.
        checks: sanity check -> its accuracy and verdict.
        ticket_bytes: part of the ticket's file -> its size.
        seconds, search_seconds, finetune_seconds: of the wall clock.
        cost: `search` and `finetune` -> their costs.
        device: all that computed it, one after another if it was resumed elsewhere.
        precision, world_size: in which precision, in how many processes.
        config_hash, task_hash: of the experiment, and of what it shares with its dense reference.
        dense: the dense network of the same trial; None if the results have none.
        inverts: the run that this one inverts, with `invert_sanity_check`.
    """

    algo: str | None = None
    arch: str | None = None
    dataset: str | None = None
    classes: Annotated[int, Field(ge=1)]
    trial: Count
    seed: int | None = None
    target_sparsity: Percent | None = None
    weights_total: Annotated[int, Field(ge=1, lt=2**63)]
    weights_remaining: Count | None = None
    weights_remaining_percent: Percent
    gem_weights_remaining: Count | None = None
    effective_weights_remaining: Count | None = None
    effective_weights_remaining_percent: Percent | None = None
    dead_layers: list[str] = []
    thin_layers: list[str] = []
    layers: dict[str, Annotated[tuple[Count, Annotated[int, Field(ge=1)]], Field(strict=False)]] = {}
    as_drawn: bool | None = None
    test_acc_before_finetune: Percent
    val_acc_before_finetune: Percent | None = None
    test_acc_after_finetune: Percent | None
    val_acc_after_finetune: Percent | None = None
    checks: dict[str, Accuracy] = {}
    ticket_bytes: dict[str, Count] = {}
    seconds: Amount = 0.0
    search_seconds: Amount = 0.0
    finetune_seconds: Amount = 0.0
    cost: dict[str, Spent] = {}
    device: str = "unknown device"
    precision: str = "fp32"
    world_size: Count = 1
    config_hash: str
    task_hash: str | None = None
    dense: Reference | None = None
    inverts: Accuracy | None = None

    @property
    def gem_percent(self) -> float:
        """The weights of the network measured before training: those of the gem, in percent."""
        gem = self.gem_weights_remaining
        return self.weights_remaining_percent if gem is None else 100.0 * gem / self.weights_total


class _Sibling(Outcome):
    """What other runs need besides, of a summary that stands beside them."""

    algo: str
    weights_remaining: Count
    gem_weights_remaining: Count | None
    effective_weights_remaining_percent: Percent
    val_acc_after_finetune: Percent | None
    checks: dict[str, Accuracy]
    seconds: Amount
    search_seconds: Amount
    finetune_seconds: Amount


def read_outcome(path: Path, kind: type[Outcome] = Outcome) -> Outcome:
    """Read the fields of a `summary.json` that this version knows.

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
    """Read a whole `summary.json`, validate what other runs use of it, and fill in what early versions lack.

    Raises:
        UserError: it cannot be read, or is not the summary of a run.
    """
    summary = read_outcome(path, _Sibling)
    if summary.checks and summary.test_acc_after_finetune is None:
        raise UserError(f"{path} is not the summary of a run: it has checks of a ticket that was never trained")
    return {**summary.model_dump(), **read_json(path)}


AVERAGED = (
    "test_acc_before_finetune", "test_acc_after_finetune", "val_acc_after_finetune", "weights_remaining_percent",
    "gem_weights_remaining", "effective_weights_remaining_percent", "seconds",
)  # fmt: skip
