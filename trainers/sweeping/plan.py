"""The runs of a sweep, checked before the first of them is run: all that is wrong is said in one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from args_helper import FLAGS_ONLY, OPTIONS, Config, config_of
from trainers.sweeping.sweep_file import Options, Range, Study, Sweep, read_sweep, runs_of
from utils.errors import UserError, did_you_mean

LENGTHS = ("epochs", "iter_period", "fine_tune_epochs", "imp_rounds", "start_epoch")
"""The options by which the same epoch is another part of the whole."""


class SearchSpace(NamedTuple):
    """An option that is searched for: between two numbers, or among values; as the option itself reads them."""

    values: tuple[Any, ...]
    is_range: bool = False
    log: bool = False


class Planned(NamedTuple):
    """A run of the file, which stands for all its trials; with something sought, for the search and what it finds.

    Attributes:
        source: where the options stand, for messages.
    """

    name: str
    options: Options
    source: str
    config: Config
    sought: dict[str, SearchSpace]


def plan(path: Path, flags: Mapping[str, Any]) -> tuple[list[Planned], Study]:
    """Every run of the file, checked.

    Args:
        path: of the file.
        flags: options that beat the file's.

    Raises:
        UserError: anything wrong with the file or with the options of a run, all of it in one message.
    """
    sweep = read_sweep(path)
    problems = _Problems()
    problems.extend("", _search_problems(sweep))
    planned = []
    for name, options in runs_of(path, flags):
        given = {**options, **flags}
        source = f"{path}, {name}"
        config = problems.checked(name, given, source)
        if config is None:
            continue
        left = {option: space for option, space in sweep.search.items() if option in OPTIONS and option not in given}
        sought = {option: _sought(option, space, (name, given, source), problems) for option, space in left.items()}
        if sought:
            problems.extend(name, (f"{name}: {text}" for text in _study_problems(sweep.study, config, sought)))
        planned.append(Planned(name, given, source, config, {o: space for o, space in sought.items() if space}))
    problems.raise_any(path)
    return planned, sweep.study


# ---- what is wrong with it -----------------------------------------------------------------------------------------


class _Problems:
    """What is wrong with the runs; what is wrong in the same way with many of them is said once."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def extend(self, run: str, texts: Iterator[str]) -> None:
        """Take what is wrong with a run; of no run: with the file as a whole."""
        for text in texts:
            alike = text.replace(f", {run})", ")").removeprefix(f"{run}: ")
            self._found.setdefault(alike, []).append(text)

    def checked(self, run: str, options: Options, source: str) -> Config | None:
        """The config of these options, or None: something is wrong with them."""
        try:
            return config_of(options, source)
        except UserError as error:
            self.extend(run, iter(str(error).split("\n  ")[1:]))
            return None

    def raise_any(self, path: Path) -> None:
        """Raises: UserError: all that was found, if anything was."""
        lines = []
        for texts in self._found.values():
            others = len(set(texts)) - 1
            lines.append(texts[0] + (f" (and in {others} other run{'s' if others > 1 else ''})" if others else ""))
        if lines:
            raise UserError("\n  ".join([f"the sweep {path}:", *lines]))


def _search_problems(sweep: Sweep) -> Iterator[str]:
    """What is wrong with the search whatever the runs are."""
    for option in sweep.search:
        if option not in OPTIONS:
            yield f"search.{option}: no such option{did_you_mean(option, OPTIONS)}"
        elif option in sweep.vary or option in sweep.options:
            other = "vary" if option in sweep.vary else "options"
            yield f"search.{option}: stands in {other} as well; an option is either given or searched for"
        elif option in FLAGS_ONLY or not OPTIONS[option].json_schema_extra["affects"] or option == "seed":
            yield f"search.{option}: there is nothing to be found, for no value of it makes a ticket better"
    if "study" in sweep.model_fields_set and not sweep.search:
        yield "study: there is no search for it to go by: name options, and where to look for them, in search"


def _sought(
    option: str, space: Range | list[Any], run: tuple[str, Options, str], problems: _Problems
) -> SearchSpace | None:
    """What is searched, with values as the option reads them; None: something is wrong with it, and noted.

    Args:
        option: its name.
        space: as it stands in the file.
        run: name, options and source of the run that it is searched for in.
        problems: to note them in.
    """
    name, options, source = run
    given = [space.low, space.high] if isinstance(space, Range) else space
    configs = [problems.checked(name, {**options, option: value}, source) for value in given]
    if None in configs:
        return None
    values = tuple(getattr(config, option) for config in configs)
    problems.extend("", (f"search.{option}: {text}" for text in _space_problems(space, values)))
    return SearchSpace(values, *((True, space.log) if isinstance(space, Range) else ()))


def _space_problems(space: Range | list[Any], values: tuple[Any, ...]) -> Iterator[str]:
    if isinstance(space, list):
        if len(set(values)) < len(values):
            yield "a value stands there twice"
    elif any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        yield "low and high are for numbers; list the values instead"
    elif values[0] >= values[1]:
        yield f"low {space.low} has to be below high {space.high}"
    elif space.log and values[0] <= 0:
        yield f"low has to be above 0 on a log scale, not {space.low}"


def _study_problems(study: Study, config: Config, sought: Mapping[str, SearchSpace | None]) -> Iterator[str]:
    """What cannot be meant by the search in a run."""
    if config.use_full_data:
        yield "use_full_data holds out no validation images, which a search needs"
    numbers = range(config.trial_num, config.trial_num + config.num_trial)
    if study.seed in {config.model_copy(update={"trial_num": number}).effective_seed for number in numbers}:
        yield f"study.seed {study.seed} is the seed of a trial; what is found with it has to be confirmed with others"
    if study.metric == "val_acc_after_finetune":
        if config.skip_fine_tune:
            yield "skip_fine_tune leaves no val_acc_after_finetune (study.metric)"
    elif not config.algorithm.accurate_untrained:
        yield f"the accuracy before training is not what {config.algo} looks for; study.metric: val_acc_after_finetune"
    else:
        for option in sought:
            if option.startswith("fine_tune_"):
                yield f"{option} does not affect the accuracy before training; study.metric: val_acc_after_finetune"
    if study.pruner != "none":
        for option in LENGTHS:
            if option in sought:
                yield f"with another {option} an epoch is not comparable to the same of other runs; study.pruner: none"
