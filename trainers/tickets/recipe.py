"""How a stage trains: its length, optimizer and learning rates, as plain values that a ticket can carry.

A ticket file stores the recipe, so that missing checks can be made later exactly as the ticket was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from args_helper import Config
from utils.schedules import lr_factor


@dataclass(frozen=True)
class Recipe:
    """How weights or scores are trained; control networks are trained by the recipe of their ticket.

    Attributes:
        stage: the stage that trains the ticket; control networks have their own stages.
        epochs: length of the schedule.
        optimizer, lr, lr_policy, wd, momentum, nesterov, no_bn_decay, label_smoothing: as the options of these names.
        gamma, milestones: of `multistep_lr`.
        precision, accumulate: as the options of these names.
        warmup: epochs of linear warm-up, at the start of the schedule.
        augment: whether training images are cropped and flipped, where the data set does so.
        teacher, teacher_weight, teacher_temperature: as the options of these names.
        first_epoch: epoch of the schedule at which training starts.
        stop: epoch at which training ends, if before the end of the schedule.
    """

    stage: str
    epochs: int
    optimizer: str
    lr: float
    lr_policy: str
    wd: float
    momentum: float
    nesterov: bool
    no_bn_decay: bool
    label_smoothing: float
    gamma: float
    milestones: tuple[int, ...] | None
    precision: str = "fp32"
    accumulate: int = 1
    warmup: int = 0
    augment: bool = True
    teacher: str | None = None
    teacher_weight: float = 0.0
    teacher_temperature: float = 1.0
    first_epoch: int = 0
    stop: int | None = None

    @classmethod
    def of_search(cls, config: Config, **changes: Any) -> Recipe:
        """The recipe of the options `epochs`, `optimizer`, `lr`, `lr_policy` and `wd`, with `changes` to its fields."""
        chosen = {
            "stage": "search", "epochs": config.epochs, "optimizer": config.optimizer, "lr": config.lr,
            "lr_policy": config.lr_policy, "wd": config.wd, "warmup": config.warmup_length,
            "first_epoch": config.start_epoch,
        }  # fmt: skip
        return cls(**{**_shared(config), **chosen, **changes})

    @classmethod
    def of_tuning(cls, config: Config, **changes: Any) -> Recipe:
        """The recipe of the options `fine_tune_*`, with `changes` to its fields."""
        chosen = {
            "stage": "finetune", "epochs": config.tuning_epochs, "optimizer": config.fine_tune_optimizer,
            "lr": config.fine_tune_lr, "lr_policy": config.fine_tune_lr_policy, "wd": config.fine_tune_wd,
            "augment": config.fine_tune_augment, "teacher": config.teacher, "teacher_weight": config.teacher_weight,
            "teacher_temperature": config.teacher_temperature,
        }  # fmt: skip
        return cls(**{**_shared(config), **chosen, **changes})

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, 0-based in the schedule, which `first_epoch` and `stop` do not shift."""
        return self.lr * lr_factor(self.lr_policy, self.epochs, self.gamma, self.milestones, self.warmup)(epoch)

    def was_followed(self, rows: Sequence[Mapping[str, Any]], resumed_with: str) -> bool:
        """Whether a stage surely followed this recipe from its first epoch on, although its run changed options.

        Args:
            rows: of the stage's epochs.
            resumed_with: the option of this name, which says what was changed, but not in which stage.
        """
        epochs = range(self.first_epoch, self.epochs if self.stop is None else self.stop)
        unseen = {"momentum", "label_smoothing", "precision", "accumulate", "decode_on"}  # no row tells of them
        unseen.add("fine_tune_wd" if self.stage == "finetune" else "wd")
        return [row["lr"] for row in rows] == [*map(self.rate, epochs)] and not unseen & set(resumed_with.split())


def _shared(config: Config) -> dict[str, Any]:
    names = ("momentum", "nesterov", "no_bn_decay", "label_smoothing", "gamma", "milestones", "precision", "accumulate")
    return {name: getattr(config, name) for name in names}
