"""What a run began from and where it computed: its `environment.json`, which any later process only adds to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from args_helper import Config
from trainers.tickets.file import TICKET
from utils.errors import UserError
from utils.files import digest, read_json, write_json

ENVIRONMENT = "environment.json"
BEGUN_FROM = ("ticket", "pretrained", "imp_rewind_model")
"""The options that name a file with weights or masks to begin from."""


def environments(folder: Path) -> list[dict[str, Any]]:
    """Return where each part of a run computed: the first whole, of the others what differs; [] if it is damaged."""
    try:
        first = read_json(folder / ENVIRONMENT)
        later = first.pop("resumed_in", [])
        return [first, *map(dict, later)]
    except (UserError, AttributeError, TypeError, ValueError):  # missing or damaged
        return []


def add_environment(folder: Path, now: Mapping[str, Any]) -> None:
    """Write the environment of a run's first part, or what differs from it in the part that begins now."""
    first, *later = environments(folder) or [{}]
    if not first:
        write_json(folder / ENVIRONMENT, now)
    elif now != {**first, **(later[-1] if later else {})}:
        changed = {name: value for name, value in now.items() if first.get(name) != value}
        write_json(folder / ENVIRONMENT, {**first, "resumed_in": [*later, changed]})


def devices(folder: Path) -> str:
    """Name all devices that a run has computed on, in order."""
    parts = environments(folder)
    return ", ".join(dict.fromkeys(str(part.get("device", parts[0].get("device"))) for part in parts))


def digests_of(config: Config) -> dict[str, str]:
    """Return, for every option that names a file to begin from or to run, its digest; a missing file is left out."""
    paths = {name: Path(getattr(config, name) or "") for name in BEGUN_FROM}
    paths |= {name: Path(getattr(config, name).rpartition(":")[0]) for name in ("algo", "arch")}  # path.py:function
    if config.teacher:  # its ticket, which also states the accuracy after training
        paths["teacher"] = Path(config.teacher) / TICKET
    return {name: digest(path) for name, path in paths.items() if path.is_file()}


def files_of(folder: Path) -> dict[str, str]:
    """Return `digests_of` a run's config when the run began."""
    files = next(iter(environments(folder)), {}).get("files")
    return files if isinstance(files, dict) else {}


def are_alike(files: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Return whether two runs may have begun from the same files, as far as `files_of` knows."""
    return all(others.get(name, digest) == digest for name, digest in files.items())
