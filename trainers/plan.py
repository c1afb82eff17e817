"""The plan of a run, before hours are spent on it: layers, prunings, steps, and time and memory by ten timed steps."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from data import load_data
from data.loader import Splits
from models import build_model
from models.folding import FoldedNetwork
from models.masking import plain_state, prunable_parameters, to_plain
from trainers.algorithms import load_algorithm
from trainers.compiling import prepared
from trainers.folders import folder_of, resolved
from trainers.loop import evaluate
from trainers.sanity import CHECKS
from trainers.statistics import refuse_single_images
from trainers.weights import train_ticket
from utils.environment import device_name, peak_memory, reset_peak_memory
from utils.errors import Stopped
from utils.masks import Ticket, all_kept, ceil_count, floor_count, is_bias
from utils.recipe import Recipe
from utils.run import Run
from utils.stopping import Stopping

if TYPE_CHECKING:
    from args_helper import Config

TIMED_STEPS = 10
WARM_UP = 3
"""Steps that are not timed: the first ones allocate memory, and compile."""


class Timing(NamedTuple):
    """Seconds: of a step of the search, None without steps; of its scoring; of a step of weights; of an evaluation."""

    search: float | None
    scoring: float
    weights: float
    evaluation: float


def print_plan(config: Config) -> None:
    """Print what the first trial of a config would do; nothing is kept of it.

    Raises:
        UserError: something given cannot be used.
    """
    config = resolved(config)
    folder = folder_of(config)
    data = load_data(config)
    net = build_model(config, data.spec).to(config.torch_device)
    refuse_single_images(net, data)
    sizes = {name: tuple(value.shape) for name, value in prunable_parameters(net).items()}
    config = prepared(config, net, data)
    for line in [*_what(config, folder, data), *_layers(sizes, config)]:
        print(line)
    for line in _prunings(config, sum(torch.Size(s).numel() for name, s in sizes.items() if not is_bias(name))):
        print(line)
    reset_peak_memory(data.train.device)
    with tempfile.TemporaryDirectory() as scratch:
        timing = _timed(config, net, data, Path(scratch))
    for line in _costs(config, data, timing):
        print(line)
    print(f"memory       {peak_memory(data.train.device) / 2**20:,.0f} MiB at most in those steps, data included")


# ---- what it is ----------------------------------------------------------------------------------------------------


def _what(config: Config, folder: Path, data: Splits) -> Iterator[str]:
    there = "finished" if (folder / "summary.json").exists() else "begun" if folder.exists() else "not there yet"
    yield f"{config.arch} on {config.dataset}, {config.algo}, on {device_name(config.torch_device)}"
    yield f"run folder   {folder} ({there})"
    counts = ((split, len(part.images)) for split, part in (("train", data.train), ("val", data.val)) if part)
    images = ", ".join(f"{count:,} {split}" for split, count in [*counts, ("test", len(data.test))])
    shape = "×".join(map(str, data.spec.shape))
    yield f"images       {images}, {shape}, {len(data.spec.classes)} classes"


def _layers(sizes: dict[str, tuple[int, ...]], config: Config) -> Iterator[str]:
    width = max(map(len, sizes))
    yield "layers that are masked"
    for name, shape in sizes.items():
        yield f"  {name:<{width}}  {'×'.join(map(str, shape)):<16} {torch.Size(shape).numel():>12,}"
    whole = sum(torch.Size(shape).numel() for name, shape in sizes.items() if not is_bias(name))
    kept = max(1, floor_count(config.density, whole))
    share = f"{kept:,} are to remain ({config.target_sparsity:g}%)"
    yield f"  {'weights':<{width}}  {'':<16} {whole:>12,}  of which {share}"


def _prunings(config: Config, weights: int) -> Iterator[str]:
    """When a gradual algorithm prunes, and how many weights then remain in play."""
    if config.algo == "hc_iter" and config.prune_type == "FixThresholding":
        epochs = ", ".join(map(str, config.prunings))
        yield f"prunings     after epochs {epochs}: of every weight whose score is up to 0.5, however many these are"
        return
    schedule = list(_schedule(config, weights))
    if schedule:
        yield "prunings     weights in play afterwards, where none tie"
        yield from (f"  {when:<14} {left:>12,}  {100 * left / weights:8.3f}%" for when, left in schedule)


def _schedule(config: Config, left: int) -> Iterator[tuple[str, int]]:
    whole, target = left, max(1, floor_count(config.density, left))
    if config.algo == "hc_iter":
        for epoch in config.prunings:
            left -= ceil_count(config.pruning_rate, left)
            if config.prune_type == "ExactBottomK" and epoch == config.prunings[-1] and not config.override_prune_rate:
                left = target
            yield f"after epoch {epoch}", left
    elif config.algo == "global_ep_iter":
        for number in range(1, (config.epochs - 1) // config.iter_period + 1):
            left = whole - ceil_count(1.0 - (1.0 - config.pruning_rate) ** number, whole)
            yield f"from epoch {1 if number == 1 else number * config.iter_period + 1}", left
    elif config.algo == "imp":
        for number in range(1, config.imp_prunings + 1):
            left -= ceil_count(config.prune_rate, left)
            if config.imp_rounds < 0 and number == config.imp_prunings:
                left = target
            yield f"before round {number}", left


# ---- what it costs -------------------------------------------------------------------------------------------------


class _Timed(Stopping):
    """Stops a stage after so many steps, and notes when each of them ended."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.moments: list[float] = []

    @property
    def asked(self) -> int:
        """Asked between steps, and at the end of epochs; not 0 when there have been enough."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.moments.append(time.perf_counter())
        return int(len(self.moments) > WARM_UP + TIMED_STEPS)

    def step_seconds(self) -> float | None:
        """The median over the steps; None when there were none."""
        timed = self.moments[WARM_UP:]
        return median(after - before for before, after in pairwise(timed)) if len(timed) > 1 else None

    def leave(self, folder: Path, _code: int) -> None:
        """Leave the stage: there is no run to go on with."""
        raise Stopped("timed", 0, folder)


def _timed(config: Config, net: nn.Module, data: Splits, scratch: Path) -> Timing:
    """Time some steps of the search, of weights under a mask, and of an evaluation."""
    find_ticket = load_algorithm(config.algo)
    search = _Timed(data.train.device)
    started = time.perf_counter()
    _until_stopped(config, scratch / "search", search, lambda run: find_ticket(net, data, config, run))
    scoring = 0.0 if search.moments else time.perf_counter() - started
    to_plain(net)

    weights, ticket = _Timed(data.train.device), Ticket(plain_state(net), all_kept(prunable_parameters(net)))
    recipe = Recipe.of_tuning(config, epochs=WARM_UP + TIMED_STEPS)
    train = lambda run: train_ticket(run, "finetune", net, ticket, data, recipe)  # noqa: E731
    _until_stopped(config, scratch / "weights", weights, train)

    batches = list(islice(data.test, TIMED_STEPS))
    folded = FoldedNetwork(net).refreshed()
    evaluate(folded, batches[:1])
    started = time.perf_counter()
    evaluate(folded, batches)  # which reads its result from the device
    of_an_image = (time.perf_counter() - started) / sum(len(labels) for _, labels in batches)
    evaluated = len(data.test) + (len(data.val) if data.val else 0)
    return Timing(search.step_seconds(), scoring, weights.step_seconds() or 0.0, of_an_image * evaluated)


def _until_stopped(config: Config, folder: Path, timed: _Timed, work: Callable[[Run], object]) -> None:
    run = Run(folder, folder / "events", config.effective_seed, stopping=timed)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), run.until_stopped():
            work(run)
    except Stopped:
        pass


def _costs(config: Config, data: Splits, timing: Timing) -> Iterator[str]:
    """Steps and seconds, stage by stage."""
    steps, whole = len(data.train), timing.scoring
    if timing.scoring >= 0.05:
        yield f"scoring      {_clock(timing.scoring)}"
    for stage, epochs, step in _stages(config, timing):
        if not epochs:
            continue
        seconds = epochs * (steps * step + timing.evaluation)
        whole += seconds
        yield (
            f"{stage:<12} {epochs:,} epochs of {steps:,} steps at {1000 * step:.1f} ms and "
            f"{timing.evaluation:.2f} s of evaluation: {_clock(seconds)}"
        )
    trials = f" a trial, {_clock(whole * config.num_trial)} for {config.num_trial}" if config.num_trial > 1 else ""
    yield f"all of it    about {_clock(whole)}{trials}, by {TIMED_STEPS} timed steps of each kind"


def _stages(config: Config, timing: Timing) -> Iterator[tuple[str, int, float]]:
    """Stage, its epochs, and the seconds of one of its steps."""
    twins = 0 if config.skip_sanity_checks else len(CHECKS)
    if config.algo == "training":
        yield "training", config.epochs, timing.weights
        return
    if config.algo == "imp":
        yield "search", (config.imp_prunings + 1) * config.iter_period, timing.weights
        yield "checks", twins * config.iter_period, timing.weights
        return
    if timing.search is not None:
        yield "search", config.epochs - config.start_epoch, timing.search
    if config.algo == "cts" and config.rewind_epoch:
        yield "rewinding", config.rewind_epoch, timing.weights
    if not config.skip_fine_tune:
        yield "fine-tuning", config.tuning_epochs, timing.weights
        yield "checks", twins * config.tuning_epochs, timing.weights


def _clock(seconds: float) -> str:
    """Seconds in words, such as 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
