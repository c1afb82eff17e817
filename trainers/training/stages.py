"""The stages of a run, derived from its options before it starts.

Estimates need them: `--dry_run`, whether compiling pays, warnings about milestones. The run itself does not follow this
list; `trainers.pipeline` and the algorithms do what it foretells.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

from args_helper import Config
from trainers.checks.controls import CHECKS
from utils.errors import counted


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
        name: as in the run's table and checkpoints.
        epochs: how many this run trains; 0: the stage comes finished from another run.
        trains: what a step updates.
    """

    name: str
    epochs: int
    trains: Literal["scores", "weights"]


def stages_of(config: Config) -> list[Stage]:
    """List the stages in which a run trains, in order.

    A user's algorithm is assumed to learn scores for `epochs`. What only the search shows is ignored: that it dies
    before its last epoch, or that its ticket keeps all weights and so has no checks.
    """
    facts, search = config.algorithm, _search(config)
    if facts.is_dense:
        return search
    if facts.search == "rounds":  # the last round is the trained ticket
        trained, length = search, config.iter_period
    elif facts.search == "sparse":  # the search trains the ticket
        trained, length = search, config.epochs - config.start_epoch
    elif config.skip_fine_tune:
        return search
    else:
        length = config.tuning_epochs - (config.rewind_epoch if facts.rewinds else 0)
        trained = [*search, Stage("finetune", length, "weights")]
    if config.skip_sanity_checks or _keeps_all(config):
        return trained
    return [*trained, *(Stage(f"check/{name}", length, "weights") for name in CHECKS)]


def warn_of_idle_milestones(config: Config) -> None:
    """Warn if no milestone lowers the learning rate of search or fine-tuning, which share `milestones`."""
    trained = {stage.name.partition("/")[0] for stage in stages_of(config)}
    parts = {
        "search": (config.lr_policy, config.iter_period if config.algorithm.search == "rounds" else config.epochs),
        "finetune": (config.fine_tune_lr_policy, config.tuning_epochs),
    }
    for part, (policy, epochs) in parts.items():
        steps = config.milestones if part in trained and policy == "multistep_lr" else None
        if steps and not any(0 < step < epochs for step in steps):
            warnings.warn(
                f"multistep_lr never lowers the learning rate of {part}: of the milestones "
                f"{', '.join(map(str, steps))}, which search and fine-tuning share, none lies in its "
                f"{counted(epochs, 'epoch')}",
                stacklevel=2,
            )


def _keeps_all(config: Config) -> bool:
    """Whether the ticket is certain to be the dense network, which has no checks."""
    facts = config.algorithm
    if facts.search == "rounds":
        return config.imp_prunings == 0
    return facts.bounded and not facts.gradual and config.unflag_before_finetune and not config.pretrained


def _search(config: Config) -> list[Stage]:
    """The stages up to the ticket; none for algorithms that score weights in a few passes."""
    facts = config.algorithm
    if facts.search == "rounds":
        return _rounds(config)
    if facts.search == "none":
        return []
    has_dense_epochs = facts.rewinds and config.rewind_epoch
    dense = [Stage("search/dense", config.rewind_epoch, "weights")] if has_dense_epochs else []
    return [*dense, Stage("search", config.epochs - config.start_epoch, "scores" if facts.learns_mask else "weights")]


def _rounds(config: Config) -> list[Stage]:
    """The rounds of iterative magnitude pruning, from the one that `imp_resume_round` takes from another run."""
    first = max(0, config.imp_resume_round)
    rounds = range(first, config.imp_prunings + 1)
    lengths = dict.fromkeys(rounds, config.iter_period)
    if config.imp_resume_round >= 0:
        is_begun = max(config.imp_resume_epoch, config.imp_resume_iter) >= 0
        lengths[first] = config.iter_period - max(0, config.imp_resume_epoch) if is_begun else 0
    return [Stage(f"search/round_{number}", epochs, "weights") for number, epochs in lengths.items()]
