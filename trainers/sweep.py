"""Many runs by one file, one after another, and the table that compares them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from args_helper import Config, config_of
from trainers.pipeline import run_trials
from trainers.sanity import CHECKS
from utils.comparison import comparison_table, write_comparison
from utils.errors import UserError, meant


def run_sweep(config: Config) -> None:
    """Run every run of the file `sweep`, going on with those that were begun and passing over the finished.

    The file has `options` that all runs share, `runs` (a name -> what that one differs in) and `vary` (an option ->
    the values every run is run with; a run that states the option itself is not varied in it). Flags beat the file.

    Raises:
        UserError: anything wrong with the file or a run's options; all runs are checked before the first is run.
        Stopped: the process was asked to stop; the same command goes on.
    """
    path = Path(config.sweep)
    flags = {name: getattr(config, name) for name in config.model_fields_set - {"sweep", "config"}}
    runs = {name: config_of({**options, **flags}, f"{path}, {name}") for name, options in runs_of(path)}
    folders = {}
    for number, (name, run) in enumerate(runs.items(), start=1):
        print(f"== {number} of {len(runs)}: {name}", flush=True)
        folders[name] = run_trials(run, go_on=True)
    # Once more: trials that other processes finished meanwhile count as well.
    table = comparison_table({name: (folders[name], run.config_hash) for name, run in runs.items()}, tuple(CHECKS))
    place = Path(next(iter(runs.values())).results_dir) / path.stem
    print(write_comparison(place, table))


class Sweep(BaseModel):
    """What the file has to look like."""

    model_config = ConfigDict(extra="forbid")
    options: dict[str, Any] = {}
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    runs: dict[str, dict[str, Any] | None]


def runs_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each run's name, as `run/option_value`, and its options."""
    sweep = _read(path)
    for name, own in sweep.runs.items():
        own = own or {}
        open_options = {option: values for option, values in sweep.vary.items() if option not in own}
        for values in product(*open_options.values()):
            chosen = dict(zip(open_options, values))
            full_name = "/".join([name, *(f"{option}_{value}" for option, value in chosen.items())])
            yield full_name, {"subfolder": path.stem, "name": full_name, **sweep.options, **chosen, **own}


def _read(path: Path) -> Sweep:
    """Raises: UserError: the file cannot be read, or has another shape."""
    try:
        return Sweep.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the sweep {path}: {error}") from error
    except ValidationError as error:
        known = Sweep.model_fields
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}{meant(str(one['loc'][-1:]), known)}"
            for one in error.errors()
        ]
        raise UserError("\n  ".join([f"the sweep {path}:", *problems])) from error
