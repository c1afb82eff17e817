"""Config files that a sweep writes: one for the process of each run, and one with the result of each search."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from pathlib import Path

import yaml

from args_helper import FLAGS_ONLY, OPTIONS, Config
from utils.files import write_atomic

PLACES = ("name", "subfolder", "run_idx", "results_dir", "log_dir")
"""Options that say where a run is stored: the user of the config chooses them."""
KEPT_BY_A_RUN = {"skip_sanity_checks", "with_dense", "save_model", "store_weights", "export", "checkpoint_every"}
"""Options that a resumed run takes from its folder unless they are stated, and that say what it computes and stores: a
sweep may have lost them since."""


def stated(config: Config, *without: str, also: Collection[str] = ()) -> str:
    """Return, as YAML, the options that were given or differ from their defaults; all others stay unset.

    Args:
        config: of a run.
        without: options to leave out.
        also: options to state in any case.
    """
    names = {
        option
        for option, field in OPTIONS.items()
        if option in config.model_fields_set or option in also or getattr(config, option) != field.default
    }
    options = json.loads(config.model_dump_json(include=names - {*without, *FLAGS_ONLY}, exclude_none=True))
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def write_found(folder: Path, name: str, config: Config, how: str) -> Path:
    """Write `best_<name>.yml`: the config, and how the search found it.

    Args:
        folder: of the sweep.
        name: of the run.
        config: with the values that were found.
        how: they were found, in words.

    Returns:
        The file.
    """
    path = folder / ("best_" + re.sub(r"[^\w.=+-]", "_", name) + ".yml")
    header = (
        f"# {name}, as the search of {folder.name} found it: on validation, without a look at test.\n"
        f"#   python main.py --config {shlex.quote(str(path))}\n"
        f"# {how}.\n"
    )
    write_atomic(path, header + stated(config, *PLACES, "max_time"))
    return path
