"""Finds the runs that a run is compared with: the dense network, and the run that `invert_sanity_check` inverts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from args_helper import Config, DataOptions, ModelOptions, RunOptions, SearchOptions, parse_args
from trainers.algorithms import DENSE
from trainers.results.summary import read_summary
from trainers.tickets.recipe import Recipe
from utils.errors import UserError
from utils.files import files_below

OF_MASKS = {"score_init", "freeze_weights", "conv_type"}
"""The model options that do not affect the dense network."""


class Found(NamedTuple):
    """A finished run, its summary, and whether its network was trained as that of the run compared with it."""

    folder: Path
    summary: dict[str, Any]
    is_alike: bool = True


def dense_config(config: Config) -> Config:
    """The config of the dense run with the same data, network, seed and trial, trained like the ticket.

    Options of the search (penalty, pruning, rounds) keep their defaults. So tickets of different algorithms that are
    trained alike have the same dense run, by its config hash.

    Args:
        config: of the ticket's run.
    """
    if config.algorithm.search == "rounds":  # rounds are trained by the search's own options
        recipe = Recipe.of_search(config, epochs=config.iter_period, gamma=config.lr_gamma)
    elif config.algorithm.search in ("sparse", "weights"):
        recipe = Recipe.of_search(config)
    else:
        recipe = Recipe.of_tuning(config)
    same = {*RunOptions.model_fields, *DataOptions.model_fields, *ModelOptions.model_fields}
    same -= {*OF_MASKS, "resumed_with"}
    same |= {"prune_rate"} if config.scale_fan else set()  # it scales the weights
    options = {name: getattr(config, name) for name in same}
    options |= {name: value for name, value in asdict(recipe).items() if name in SearchOptions.model_fields}
    own = {"algo": DENSE, "warmup_length": recipe.warmup, "start_epoch": 0, "resume": None}
    name = f"{config.name}_dense" if config.name else "dense"
    return Config().model_copy(update={**options, **own, "name": name})


def find_dense(config: Config, among: Iterable[Found] | None = None) -> Found | None:
    """Find a finished dense run with the same data, network, seed and trial.

    Of several, prefer the one that is trained like the ticket, then the best on validation.

    Args:
        config: of a ticket's run.
        among: finished runs; by default those in `results_dir`.

    Returns:
        The run, perhaps trained otherwise than the ticket; None if no finished one is there.
    """
    alike = dense_config(config).config_hash
    found = [
        one._replace(is_alike=_trained_as(one.folder, _time_of(one.folder / "config.yml")) == alike)
        for one in (_finished(Path(config.results_dir)) if among is None else among)
        if one.summary["algo"] == DENSE
        and one.summary.get("task_hash") == config.task_hash
        and one.summary["trial"] == config.trial_num
    ]
    return max(found, key=lambda one: (one.is_alike, one.summary["val_acc_after_finetune"] or 0.0), default=None)


@lru_cache
def _trained_as(folder: Path, _time: int) -> str | None:
    """The hash of how a dense run was trained, by `dense_config`; None if it was not trained in one way.

    Without the options that it does not read: all runs of a sweep share some.

    Args:
        folder: of the run.
        _time: of its config.yml, so that one that was written anew is read anew.
    """
    try:
        stored = parse_args(["--resume", str(folder)])
    except UserError:
        return None
    return None if stored.resumed_with else dense_config(stored).config_hash


def _time_of(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def lacks_dense(config: Config) -> bool:
    """Whether a run `with_dense` has still to train its dense network: none that is finished was trained like it.

    Args:
        config: of one trial.
    """
    if not config.with_dense or config.algorithm.is_dense:
        return False
    found = find_dense(config)
    return found is None or not found.is_alike


def find_upright(config: Config) -> Found | None:
    """Find the finished run of the same trial that a run with `invert_sanity_check` inverts."""
    upright = config.model_copy(update={"invert_sanity_check": False}).config_hash
    same = (
        one
        for one in _finished(Path(config.results_dir))
        if one.summary["config_hash"] == upright and one.summary["trial"] == config.trial_num
    )
    return next(same, None)


def _finished(results: Path) -> Iterator[Found]:
    for path in files_below(results, "summary.json"):
        try:
            yield Found(path.parent, read_summary(path))
        except UserError:  # another run's summary, for that run to repair
            continue
