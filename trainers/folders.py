"""Where a run lives: its folder, what may already lie there, and how it is opened."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

import torch

from args_helper import Config, difference, parse_args
from utils.environment import choose_device, describe_environment
from utils.errors import UserError, resume_command
from utils.files import write_atomic, write_json
from utils.lock import locked
from utils.run import Run


def resolved(config: Config) -> Config:
    """The config with every `auto` decided.

    Raises:
        UserError: a device was named that is not there.
    """
    device = choose_device(config.device, config.gpu, config.no_cuda)
    if device == "cpu" and "gpu" in config.model_fields_set and config.device == "auto" and not config.no_cuda:
        warnings.warn(f"there is no GPU number {config.gpu}: using the CPU", stacklevel=2)
    if config.threads:
        torch.set_num_threads(config.threads)
    decided = {"device": device, "threads": torch.get_num_threads()}
    if config.mixed_precision and device == "cuda":
        decided["precision"] = "bf16"
    return config.model_copy(update=decided)


def folder_of(config: Config) -> Path:
    """The folder of the config's first trial."""
    if config.resume:  # wherever it was moved to; later trials go beside it
        return Path(config.resume).resolve().with_name(f"trial_{config.trial_num}")
    return Path(config.results_dir) / _place(config)


def _place(config: Config) -> Path:
    """The run's folder under results_dir, and its events' under log_dir; parts that are not given are left out."""
    parts = (config.subfolder, config.name, config.run_idx, f"trial_{config.trial_num}")
    return Path(*(part for part in parts if part))


def is_finished(folder: Path, config: Config, resumed: bool) -> bool:
    """Whether this very run is there and finished; one that is resumed may be there unfinished.

    Raises:
        UserError: another experiment lies there, or this one, unfinished.
    """
    stored = folder / "config.yml"
    if not stored.is_file():
        return False
    there = parse_args(["--config", str(stored)])
    if there.config_hash != config.config_hash:
        raise UserError(
            f"{folder} holds another experiment, which differs in: {difference(there, config)}; "
            f"to run this one beside it, give --name {_free_name(config)}"
        )
    finished = (folder / "summary.json").is_file()
    if not finished and not resumed:
        raise UserError(f"{folder} holds this run, unfinished; go on with it by: {resume_command(folder)}")
    return finished


def _free_name(config: Config) -> str:
    """A name under which there is no run folder yet."""
    names = (f"{config.name or 'run'}_{number}" for number in count(2))
    return next(name for name in names if not folder_of(config.model_copy(update={"name": name})).exists())


def free_file(config: Config, name: str, *beside: str) -> Path:
    """Where an analysis may write beside the config's trials: `name`, or numbered, so that nothing is written over.

    Args:
        config: whose `name`, `subfolder` and `results_dir` say in which folder.
        name: of the file.
        beside: other endings (such as `.png`) that have to be free as well.
    """
    place = folder_of(config).parent / name
    candidates = chain([place], (place.with_stem(f"{place.stem}_{number}") for number in count(2)))
    endings = (place.suffix, *beside)
    return next(path for path in candidates if not any(path.with_suffix(end).exists() for end in endings))


@contextmanager
def opened(config: Config, folder: Path) -> Iterator[Run]:
    """The run's folder, with its options and environment written down, until the run ends or is stopped.

    A run that cannot begin, for what it was given, leaves no folder behind.
    """
    log_folder = Path(config.log_dir) / _place(config)
    made = [one for place in (folder, log_folder) for one in (place, *place.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yml", config.to_yaml())
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", describe_environment(config.torch_device))
    run = Run(
        folder,
        log_folder,
        config.effective_seed,
        config.results_filename,
        keep_every=config.save_every,
        keep_at={"search": config.kept_epochs},
        refresh_every=config.print_freq,
    )
    run.writer().add_text("config", "```yaml\n" + config.to_yaml() + "```")
    try:
        with locked(folder), run.until_stopped():
            yield run
    except UserError:
        if folder in made and not (folder / "checkpoints").exists():
            for place in (folder, log_folder):
                shutil.rmtree(place, ignore_errors=True)
            for above in made:  # from below; another run may have moved in meanwhile
                with suppress(OSError):
                    above.rmdir()
        raise
