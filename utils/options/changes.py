"""Compares the options of two experiments: on resuming, in refusals of a folder, and in the report."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return option -> "old → new" for every option whose values differ, in the order of the options."""
    return {name: f"{old.get(name)} → {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)}


def written(changed: Mapping[str, str], separator: str = ", ") -> str:
    """Write changes in one line."""
    return separator.join(f"{name} {values}" for name, values in changed.items())


def stored_config(folder: Path) -> Path:
    """Return the path of a run's config.

    Raises:
        UserError: the folder has none; the message names the trials below it, if there are any.
    """
    if (stored := folder / "config.yml").is_file():
        return stored
    trials = [str(path.parent.relative_to(folder)) for path in sorted(folder.glob("**/trial_*/config.yml"))]
    below = f"; its trials are {', '.join(trials[:6])}{', ...' * (len(trials) > 6)}: give one of them" if trials else ""
    raise UserError(f"--resume {folder}: there is no config.yml in it, so it is not the folder of a run{below}")


def accepted(before: Any, after: Any, where: str, changeable: Collection[str]) -> Any:
    """Return the config of a run that is resumed with changed options, if `resume_anyway` is given.

    Args:
        before: the config that the run began with.
        after: the one that it is resumed with.
        where: begins the messages.
        changeable: names of the options that a begun run can change.

    Raises:
        UserError: `resume_anyway` is not given, the run is finished, or it cannot change one of these options.
    """
    changed = changes(before.identity, after.identity)
    told, unable = written(changed), [name for name in changed if name not in changeable]
    if not unable and (Path(after.resume) / "summary.json").is_file():
        anew = f"--ticket {after.resume}/ticket.safetensors --name NEW fine-tunes its ticket anew"
        raise UserError(f"{where}: the run is finished, and cannot go on with {told}; {anew}")
    if unable or not after.resume_anyway:
        hint = "" if unable else "; --resume_anyway goes on with the new ones"
        unable_too = f"; a run that has begun cannot change {', '.join(unable)}" if after.resume_anyway else ""
        raise UserError(f"{where}: a run goes on as it began, but these options differ: {told}{unable_too}{hint}")
    warnings.warn(f"{where}: going on with {told}; the run is no longer that of its first options", stacklevel=2)
    note = "; ".join(filter(None, (before.resumed_with, told)))
    return after.model_copy(update={"resumed_with": note, "num_trial": 1})
