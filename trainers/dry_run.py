"""Print the plan of a run before it starts: layers, prunings, steps, and time and memory from ten timed steps.

`--dry_run` is this mode. It uses the run's own code: the steps are those of the search and the training, stopped by a
`Stopping` that counts them, in a temporary folder.
"""

from __future__ import annotations

import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout, suppress
from copy import deepcopy
from itertools import groupby, islice, pairwise
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from args_helper import Config
from data.load import Splits, load_data
from models.build import build_model
from models.folding import FoldedNetwork
from models.masking import masked_layers, plain_state, prunable_parameters, to_masked, to_plain
from models.state_files import load_scores, read_state
from trainers.algorithms.load import load_algorithm
from trainers.results.run_folder import folder_of, is_finished, resolved
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.batchnorm import refuse_single_images
from trainers.training.compile import prepared
from trainers.training.loop import evaluate
from trainers.training.rounding import is_random
from trainers.training.stages import Stage, stages_of, warn_of_idle_milestones
from trainers.training.weights import train_ticket
from utils.environment import device_name
from utils.errors import Stopped, UserError, counted
from utils.masks import all_kept, is_bias, kept_count
from utils.memory import peak_memory, reset_peak_memory
from utils.run.run import Run
from utils.run.stopping import Stopping

TIMED_STEPS = 10
WARM_UP = 3
"""Untimed first steps: they allocate memory and compile."""

PARTS = {"search/dense": "rewinding", "search": "search", "finetune": "fine-tuning", "check": "checks"}
"""Stage, or the first part of its name -> its name in the plan."""


class Timing(NamedTuple):
    """Seconds of a search step (None: no steps), of the scoring, of a step that trains weights, of an evaluation."""

    search: float | None
    scoring: float
    weights: float
    evaluation: float


def print_plan(config: Config) -> None:
    """Print what the first trial of a config would do; nothing is stored.

    Raises:
        UserError: something in the config cannot be used.
    """
    config = resolved(config)
    warn_of_idle_milestones(config)
    folder = folder_of(config)
    data = load_data(config)
    net = build_model(config, data.spec).to(config.torch_device)
    refuse_single_images(net, data)
    sizes = {name: tuple(value.shape) for name, value in prunable_parameters(net).items()}
    layers = [torch.Size(shape).numel() for name, shape in sizes.items() if not is_bias(name)]
    unpruned = _unpruned(config, net) or layers
    config = prepared(config, net, data)
    for line in [*_what(config, folder, data), *_layers(sizes, config), *_prunings(config, sum(layers), unpruned)]:
        print(line)
    reset_peak_memory(data.train.device)
    with tempfile.TemporaryDirectory() as scratch:
        timing = _timed(config, net, data, Path(scratch))
    for line in _costs(config, data, timing):
        print(line)
    print(f"memory       {peak_memory(data.train.device) / 2**20:,.0f} MiB at most in those steps, data included")


# ---- contents ------------------------------------------------------------------------------------------------------


def _what(config: Config, folder: Path, data: Splits) -> Iterator[str]:
    try:
        finished = is_finished(folder, config, resumed=True)
        there = "finished" if finished else "begun" if folder.exists() else "not there yet"
    except UserError as error:
        warnings.warn(f"the run would not start: {error}", stacklevel=3)
        there = "taken"
    yield f"{config.arch} on {config.dataset}, {config.algo}, on {device_name(config.torch_device)}"
    yield f"run folder   {folder} ({there})"
    counts = {"train": len(data.train.images), "val": len(data.val or ()), "test": len(data.test)}
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
    shape = "×".join(map(str, data.spec.shape))
    yield f"images       {images}, {shape}, {len(data.spec.classes)} classes"


def _layers(sizes: dict[str, tuple[int, ...]], config: Config) -> Iterator[str]:
    width = max(map(len, sizes))
    yield "layers that are masked"
    for name, shape in sizes.items():
        yield f"  {name:<{width}}  {'×'.join(map(str, shape)):<16} {torch.Size(shape).numel():>12,}"
    whole = sum(torch.Size(shape).numel() for name, shape in sizes.items() if not is_bias(name))
    share = ""
    if config.has_target:
        share = f"  of which {kept_count(config.density, whole):,} are to remain ({config.target_sparsity:g}%)"
    yield f"  {'weights':<{width}}  {'':<16} {whole:>12,}{share}"


def _unpruned(config: Config, net: nn.Module) -> list[int] | None:
    """Count each layer's unpruned weights at the start by the flags in `pretrained`; None: it has none, all are."""
    facts = config.algorithm
    masked = to_masked(deepcopy(net)) if facts.gradual and facts.bounded and config.pretrained else None
    if masked is None or not load_scores(masked, read_state(config.pretrained), config.pretrained):
        return None
    return [int(layer.flag.sum()) for layer in masked_layers(masked).values()]


def _prunings(config: Config, weights: int, unpruned: Sequence[int]) -> Iterator[str]:
    """Yield when a gradual algorithm prunes, and how many of its unpruned weights then remain."""
    planned = config.algorithm.prunings and resolve_name(config.algorithm.prunings)(config, weights, unpruned)
    if isinstance(planned, str):
        yield f"prunings     {planned}"
    elif planned:
        yield "prunings     unpruned weights afterwards, without ties"
        yield from (f"  {when:<14} {left:>12,}  {100 * left / weights:8.3f}%" for when, left in planned)


# ---- costs ---------------------------------------------------------------------------------------------------------


class _Timed(Stopping):
    """Stops a stage after enough timed steps, and records when each step ended."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.moments: list[float] = []

    @property
    def asked(self) -> int:
        """Read between steps and at the end of epochs; 1 after enough steps, else 0."""
        # Without this wait the moments would be those at which steps were queued, not finished.
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self.moments.append(time.perf_counter())
        return int(len(self.moments) > WARM_UP + TIMED_STEPS)

    def installed(self) -> AbstractContextManager[None]:
        """Leave signals as they are: there is nothing to save before they end the process."""
        return nullcontext()

    def step_seconds(self) -> float | None:
        """The median seconds of a step; None if no step was timed."""
        timed = self.moments[WARM_UP:]
        return median(after - before for before, after in pairwise(timed)) if len(timed) > 1 else None

    def raise_stopped(self, folder: Path, _code: int) -> None:
        """Leave the stage; there is no run to resume."""
        raise Stopped("timed", 0, folder)


def _timed(config: Config, net: nn.Module, data: Splits, scratch: Path) -> Timing:
    """Time some steps of the search, of the training of masked weights, and an evaluation."""
    find_ticket = load_algorithm(config.algo)
    search = _Timed(data.train.device)
    started = time.perf_counter()
    searched = config.model_copy(update={"rewind_epoch": 0})  # else the dense epochs before the search would be timed
    _until_stopped(config, scratch / "search", search, lambda run: find_ticket(net, data, searched, run))
    scoring = 0.0 if search.moments else time.perf_counter() - started
    to_plain(net)

    weights, ticket = _Timed(data.train.device), Ticket(plain_state(net), all_kept(prunable_parameters(net)))
    recipe = Recipe.of_tuning(config, epochs=WARM_UP + TIMED_STEPS)
    train = lambda run: train_ticket(run, "finetune", net, ticket, data, recipe)  # noqa: E731
    _until_stopped(config, scratch / "weights", weights, train)

    batches = list(islice(data.test, TIMED_STEPS))
    folded = FoldedNetwork(net).refreshed()
    evaluate(folded, batches[:1], config.precision)
    started = time.perf_counter()
    evaluate(folded, batches, config.precision)  # waits for the device, as it reads the result
    of_an_image = (time.perf_counter() - started) / sum(len(labels) for _, labels in batches)
    evaluated = len(data.test) + (len(data.val) if data.val else 0)
    return Timing(search.step_seconds(), scoring, weights.step_seconds() or 0.0, of_an_image * evaluated)


def _until_stopped(config: Config, folder: Path, timed: _Timed, work: Callable[[Run], object]) -> None:
    run = Run(folder, folder / "events", config.effective_seed, stopping=timed)
    with suppress(Stopped), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), run.until_stopped():
        work(run)


def _costs(config: Config, data: Splits, timing: Timing) -> Iterator[str]:
    """Yield a line for each part of the run: its steps and seconds."""
    steps, whole = len(data.train), timing.scoring
    if timing.scoring >= 0.05:
        yield f"scoring      {_clock(timing.scoring)}"
    for part, epochs, step, evaluation in _parts(config, timing):
        if step is None:
            yield f"{part:<12} too short to time: not counted here"
            continue
        seconds = epochs * (steps * step + evaluation)
        whole += seconds
        yield (
            f"{part:<12} {counted(epochs, 'epoch')} of {counted(steps, 'step')} at {1000 * step:.1f} ms and "
            f"{evaluation:.2f} s of evaluation: {_clock(seconds)}"
        )
    if config.with_dense:
        yield "with_dense   also trains the dense network, unless its results are there: not counted here"
    trials = f" a trial, {_clock(whole * config.num_trial)} for {config.num_trial}" if config.num_trial > 1 else ""
    yield f"all of it    about {_clock(whole)}{trials}, by {TIMED_STEPS} timed steps of each kind"


def _parts(config: Config, timing: Timing) -> Iterator[tuple[str, int, float | None, float]]:
    """Yield name, epochs, and seconds per step (None: not timed) and evaluation of each part: stages of one kind."""
    drawn = config.num_test if config.algorithm.bounded and is_random(config) else 1

    def called(stage: Stage) -> str:
        return PARTS.get(stage.name) or PARTS[stage.name.partition("/")[0]]

    for (part, trains), stages in groupby(stages_of(config), lambda stage: (called(stage), stage.trains)):
        step, masks = (timing.search, drawn) if trains == "scores" else (timing.weights, 1)
        if step is not None or not timing.scoring:  # else a user's search that trains nothing
            yield part, sum(stage.epochs for stage in stages), step, masks * timing.evaluation


def _clock(seconds: float) -> str:
    """Format seconds, for example as 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
