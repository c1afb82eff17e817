"""A run's folder: its path, what it may already hold, and how it is opened.

`trainers.pipeline` calls `resolved` once, and for each trial `is_finished` and, unless it is, `opened`. A folder with
another experiment is never written to.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path

import torch

from args_helper import Config, parse_args
from data.load import Splits
from trainers.results.beginnings import BEGUN_FROM, add_environment, digests_of, environments, files_of
from trainers.training.tensorboard import LAYOUT
from utils.distributed.collectives import rank, rank_zero_only
from utils.distributed.launch import Launch, launched
from utils.environment import be_deterministic, choose_device, describe_environment, naming_nondeterminism
from utils.errors import UserError, resume_command
from utils.files import SCRATCH, make_folder, write_atomic
from utils.memory import keep_freed_memory
from utils.options.changes import changes, written
from utils.run.checkpoints import Keeping
from utils.run.lock import locked
from utils.run.run import Run
from utils.run.stopping import Stopping, seconds_of

ECHO = 5.0
"""Seconds of debounce: Ctrl-C reaches all processes of a terminal, and torchrun forwards it to those it started."""


def resolved(config: Config) -> Config:
    """Do as `decided` for a process that computes: also make the chosen GPU, if any, PyTorch's current one.

    Raises:
        UserError: as `decided`.
    """
    config = decided(config)
    if config.device == "cuda":  # else whatever names no GPU, such as pinned memory, uses memory of GPU 0
        torch.cuda.set_device(config.torch_device)
    return config


def decided(config: Config) -> Config:
    """Decide every `auto` of a config, without touching a GPU.

    It also applies what holds for the whole process: PyTorch's threads and deterministic mode, and what becomes of
    freed memory. Sweep workers call it too, to know the hash of runs that other processes compute.

    Args:
        config: as parsed.

    Returns:
        The config with device, threads, GPU and precision as they will be used, and as `config.yml` records them.

    Raises:
        UserError: the named device does not exist, or too many processes share the work.
    """
    here = launched()
    shared = here.world > 1
    device = choose_device(config.device, 0 if shared else config.gpu, config.no_cuda)
    if shared:
        _refuse_too_many(here, device, config.batch_size)
    elif device == "cpu" and "gpu" in config.model_fields_set and config.device == "auto" and not config.no_cuda:
        warnings.warn(f"there is no GPU number {config.gpu}: using the CPU", stacklevel=2)
    if config.threads:
        torch.set_num_threads(config.threads)
    be_deterministic(config.deterministic)
    keep_freed_memory()
    chosen = {"device": device, "threads": torch.get_num_threads(), **({"gpu": here.local_rank} if shared else {})}
    if config.mixed_precision and device == "cuda" and not config.resume:  # a run goes on in its precision
        chosen["precision"] = "bf16"
    return config.model_copy(update=chosen)


def _refuse_too_many(here: Launch, device: str, batch_size: int) -> None:
    """Raises: UserError: a process has no GPU or fewer than two images of a batch, or the device is mps."""
    if device == "cuda" and torch.cuda.device_count() < here.local_world:
        raise UserError(
            f"{here.local_world} processes on a machine with {torch.cuda.device_count()} GPUs: start as many as there "
            "are GPUs (torchrun --nproc-per-node), or give --device cpu"
        )
    if device == "mps":
        raise UserError("device mps: several processes share the work on cuda or cpu only")
    if batch_size < 2 * here.world:
        raise UserError(
            f"batch_size {batch_size} is less than two images for each of the {here.world} processes that share a batch"
        )


def folder_of(config: Config) -> Path:
    """The folder of the config's first trial: the resumed one, whatever its name, or the one that its options name."""
    return Path(config.resume).resolve() if config.resume else Path(config.results_dir) / _place(config)


def trial_of(config: Config, number: int) -> Config:
    """The config of trial `number` and of those after it: resuming that trial also runs these, in folders beside it."""
    trial = config.model_copy(update={"trial_num": number, "num_trial": config.trials.stop - number})
    if config.resume and number != config.trial_num:
        return trial.model_copy(update={"resume": str(folder_of(config).with_name(f"trial_{number}"))})
    return trial


def _place(config: Config) -> Path:
    """The path of the run under `results_dir`, and of its events under `log_dir`; parts not given are left out."""
    parts = (config.subfolder, config.name, config.run_idx, f"trial_{config.trial_num}")
    return Path(*(part for part in parts if part))


@rank_zero_only
def is_finished(folder: Path, config: Config, resumed: bool, way_out: str | None = None) -> bool:
    """Whether this run is in the folder and finished; a resumed run may be unfinished.

    It writes nothing, and is called before data are read, so that a refusal costs no time.

    Args:
        folder: of the trial; it need not exist.
        config: of the trial, resolved.
        resumed: whether an unfinished run may go on.
        way_out: what to do if the folder is taken, for the message; None: what `_way_out` says.

    Raises:
        UserError: the folder holds another experiment, or this run unfinished and not `resumed`.
    """
    stored = folder / "config.yml"
    if not stored.is_file():
        if any((folder / name).exists() for name in ("checkpoints", "summary.json")):
            raise UserError(f"{folder} holds a run whose config.yml is missing; {way_out or _way_out(config)}")
        return False
    there = parse_args(["--resume", str(folder)])
    finished = (folder / "summary.json").is_file()
    # `accepted` has allowed and noted what --resume_anyway changes of the resumed run.
    changed = config.resume is not None and config.resumed_with != there.resumed_with
    if changed and there.trial_num == config.trial_num:
        if finished:
            raise UserError(f"{folder} is finished: there is nothing that could go on with other options")
        _refuse_changed_files(config, folder, way_out)
        return False
    if (there.config_hash, there.trial_num) != (config.config_hash, config.trial_num):
        differing = written(changes(there.identity, config.identity))
        raise UserError(
            f"{folder} holds another experiment, which differs in: {differing}; {way_out or _way_out(config)}"
        )
    _refuse_changed_files(config, folder, way_out, finished)
    if not finished and not resumed:
        raise UserError(f"{folder} holds this run, unfinished; go on with it by: {resume_command(folder)}")
    return finished


def _refuse_changed_files(config: Config, folder: Path, way_out: str | None, finished: bool = False) -> None:
    """Raises: UserError: a file that the run began from, or its own algorithm or network, has another content now."""
    own_only = finished and config.resume  # control networks begin from the run's own ticket
    way_out = way_out or ("put that one back" if config.resume else _way_out(config))
    began = files_of(folder)
    for name, found in digests_of(config).items():
        if began.get(name, found) != found and not (own_only and name in BEGUN_FROM):
            file = f"{getattr(config, name)} ({name})"
            raise UserError(f"{folder} was begun with another file {file} than is there now; {way_out}")


def _way_out(config: Config) -> str:
    """Say how to have the run of a config although its folder is taken."""
    if config.resume:
        return "move it away"
    names = (f"{config.name or 'run'}_{number}" for number in count(2))
    free = next(name for name in names if not folder_of(config.model_copy(update={"name": name})).exists())
    return f"to run this one beside it, give --name {free}"


def free_file(config: Config, name: str, *beside: str) -> Path:
    """A free path for an analysis beside the config's trials: `name`, numbered if needed, so nothing is overwritten.

    Args:
        config: its `name`, `subfolder` and `results_dir` give the folder.
        name: of the file.
        beside: other suffixes (such as `.png`) that must be free as well.
    """
    place = folder_of(config).parent / name
    candidates = chain([place], (place.with_stem(f"{place.stem}_{number}") for number in count(2)))
    endings = (place.suffix, *beside)
    return next(path for path in candidates if not any(path.with_suffix(end).exists() for end in endings))


@rank_zero_only
def _create_and_lock(folder: Path, held: ExitStack) -> None:
    """Create and lock the run folder until `held` closes, and remove what a killed process left half written."""
    make_folder(folder)
    _refuse_links(folder)
    held.enter_context(locked(folder))
    for scratch in folder.rglob(f".*{SCRATCH}"):
        scratch.unlink(missing_ok=True)


@rank_zero_only
def _record(config: Config, folder: Path, data: Splits) -> None:
    """Write a run's options and its environment: the first one, and any that differs on resuming.

    Raises:
        UserError: the run was begun with more or fewer images, so that other ones would be held out for validation, or
            with classes of other names, so that labels would be others.
    """
    now = describe_environment(config.torch_device) | {"images": data.sizes, "task": data.spec.task}
    for what, why in (("images", "other ones would be held out for validation"), ("task", "labels would be others")):
        began = next((part[what] for part in environments(folder) if what in part), now[what])
        if began != now[what]:
            raise UserError(
                f"{folder} was begun with other images: {began}, now {now[what]}; put them back, or begin anew: {why}"
            )
    write_atomic(folder / "config.yml", config.to_yaml())
    if files := digests_of(config):
        now["files"] = files
    add_environment(folder, now)


def _refuse_links(folder: Path) -> None:
    """Raises: UserError: a link makes the run write outside its folder, which may come from anyone."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link out of the run's folder: put in its place what it leads to")


def _keeping(config: Config) -> Keeping:
    seconds = seconds_of(config.checkpoint_every)
    every = 1 if seconds else int(config.checkpoint_every)
    return Keeping(every, seconds, config.keep_checkpoints, config.save_every, {"search": config.kept_epochs})


@contextmanager
def opened(config: Config, folder: Path, data: Splits) -> Iterator[Run]:
    """Open the run's folder, record options and environment, and hold it until the run ends or is stopped.

    A run whose options do not let it start leaves no folder behind. Of several ranks, the first holds the folder.

    Args:
        config: of the trial, resolved.
        folder: of the trial, created if missing.
        data: what it is trained on.

    Yields:
        The run; stages are stored and logged through it, and signals ask it to stop.

    Raises:
        UserError: another process uses the folder or has put another experiment there, the run was begun with other
            images, a link leads out of the folder, or it cannot be written to.
    """
    log_folder = Path(config.log_dir) / _place(config)
    made = [one for place in (folder, log_folder) for one in (place, *place.parents) if not one.exists()]
    run = Run(
        folder,
        log_folder,
        config.effective_seed,
        config.results_filename,
        keeping=_keeping(config),
        stopping=Stopping(config.max_time and seconds_of(config.max_time), ECHO if launched().by_torchrun else 0.0),
        refresh_every=config.print_freq,
    )
    begun = False
    try:
        with ExitStack() as held, naming_nondeterminism(), run.until_stopped():
            _create_and_lock(folder, held)
            is_finished(folder, config, resumed=True)  # once more: another process may have used the folder since
            begun = True
            if folder in made and log_folder not in made:
                told = f"{log_folder} has events of another run, or of one that is gone"
                warnings.warn(f"{told}, and TensorBoard will mix them: --log_dir gives another place", stacklevel=3)
            _record(config, folder, data)
            run.is_recorded = True
            run.log_beginning(f"```yaml\n{config.to_yaml()}```", LAYOUT)
            yield run
    except UserError:
        if rank() == 0 and begun and folder in made and not (run.has_stored or (folder / "checkpoints").exists()):
            for place in {folder, log_folder}.intersection(made):
                shutil.rmtree(place, ignore_errors=True)
            for above in made:  # innermost first; another run may use one by now
                with suppress(OSError):
                    above.rmdir()
        raise
