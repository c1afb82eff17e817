"""Check all runs of a sweep before the first one starts, and report all problems in one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from args_helper import FLAGS_ONLY, OPTIONS, Config, config_of
from trainers.results.run_folder import folder_of
from trainers.sweeping.sweep_file import Options, Range, Study, Sweep, read_sweep, runs_of
from utils.errors import UserError, did_you_mean
from utils.options.modes import MODES

if TYPE_CHECKING:
    from optuna.trial import Trial

LENGTHS = ("epochs", "iter_period", "fine_tune_epochs", "imp_rounds", "start_epoch", "rewind_epoch")
"""Options that change how far into a run a given epoch is."""


class SearchSpace(NamedTuple):
    """Where to search for an option: between two numbers or among values, as the option parses them.

    Attributes:
        values: (low, high) of a range, both included; else all values.
        is_range: whether it is a range.
        log: whether a range is drawn from on a log scale.
    """

    values: tuple[Any, ...]
    is_range: bool = False
    log: bool = False

    def suggested(self, trial: Trial, name: str) -> Any:
        """Return the option's value, after `as_written`, in a trial of a study; draw it unless that was done before.

        Args:
            trial: of the study.
            name: of the option.
        """
        if not self.is_range:
            return self.as_written(trial.suggest_categorical(name, [label(value) for value in self.values]))
        low, high = self.values
        suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        return self.as_written(suggest(name, low, high, log=self.log))

    def as_written(self, drawn: Any) -> Any:
        """Convert what was drawn to the option's value; numbers get three digits, as a person would write them.

        Args:
            drawn: as the study stores it: a number, or the `label` of a value; rounding does not leave the bounds.
        """
        if not self.is_range:
            return next(value for value in self.values if label(value) == drawn)
        if isinstance(drawn, int):
            return drawn
        low, high = self.values
        return min(max(float(f"{drawn:.3g}"), low), high)


def label(value: Any) -> Any:
    """Return what a study stores for a listed value: Optuna takes no lists."""
    return value if isinstance(value, str | bool | int | float) else str(value)


class Planned(NamedTuple):
    """A run of the sweep file: all its trials or, if options are sought, the search and the trials of its result.

    Attributes:
        source: file and run that state the options, for messages.
    """

    name: str
    options: Options
    source: str
    config: Config
    sought: dict[str, SearchSpace]

    def combinations(self, most: int) -> int | None:
        """Return how many combinations the listed values have; None: more than `most`, or an option has a range."""
        count = prod(len(space.values) for space in self.sought.values())
        return None if count > most or any(space.is_range for space in self.sought.values()) else count


def plan(path: Path, flags: Mapping[str, Any]) -> tuple[list[Planned], Study]:
    """Return every run of a sweep file, checked, and the settings of its search.

    Args:
        path: of the file.
        flags: options that override the file's.

    Raises:
        UserError: the file or the options of a run are wrong; one message lists all problems.
    """
    sweep = read_sweep(path)
    problems = _Problems()
    problems.extend("", _search_problems(sweep))
    planned, places = [], {}
    for name, options in runs_of(path, flags):
        given = {**options, **flags}
        source = f"{path}, {name}"
        config = problems.checked(name, given, source)
        if config is None:
            continue
        problems.extend(name, (f"{name}: {option} is not for a sweep, which runs new trials: leave it out"
                               for option in (*MODES, *FLAGS_ONLY) if getattr(config, option)))  # fmt: skip
        if (other := places.get(folder_of(config))) == name:
            problems.extend("", iter([f"vary: a value stands there twice, in {name}"]))
        elif other:
            problems.extend(name, iter([f"{name}: its trials would lie where those of {other} do; leave out name"]))
        places[folder_of(config)] = name
        left = {option: space for option, space in sweep.search.items() if option in OPTIONS and option not in given}
        sought = {option: _sought(option, space, (name, given, source), problems) for option, space in left.items()}
        if sought:
            problems.extend(name, (f"{name}: {text}" for text in _study_problems(sweep.study, config, sought)))
        planned.append(Planned(name, given, source, config, {o: space for o, space in sought.items() if space}))
    problems.raise_any(path)
    return planned, sweep.study


# ---- problems ------------------------------------------------------------------------------------------------------


class _Problems:
    """Collects the problems of all runs; a problem that many runs share is reported once."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def extend(self, run: str, texts: Iterator[str]) -> None:
        """Add the problems of a run; an empty name stands for the file as a whole."""
        for text in texts:
            alike = text.replace(f", {run})", ")").removeprefix(f"{run}: ")
            self._found.setdefault(alike, []).append(text)

    def checked(self, run: str, options: Options, source: str) -> Config | None:
        """Return the config of these options; None: they are wrong, and their problems are added."""
        try:
            return config_of(options, source)
        except UserError as error:
            self.extend(run, iter(str(error).split("\n  ")[1:]))
            return None

    def raise_any(self, path: Path) -> None:
        """Raises: UserError: all problems, if there are any."""
        lines = []
        for texts in self._found.values():
            others = len(set(texts)) - 1
            lines.append(texts[0] + (f" (and in {others} other run{'s' if others > 1 else ''})" if others else ""))
        if lines:
            raise UserError("\n  ".join([f"the sweep {path}:", *lines]))


def _search_problems(sweep: Sweep) -> Iterator[str]:
    """Yield the problems of the search that do not depend on a run."""
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
    """Return where to search for an option, with values as it parses them; None: they are wrong, problems are added.

    Args:
        option: its name.
        space: as in the file.
        run: name, options and source of the run with the search.
        problems: to add to.
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
    """Yield contradictions between the search and the options of a run."""
    ignored = config.algorithm.ignores
    for option in {*sought}.intersection(ignored.options):
        yield f"{option} is not used by {config.algo}, which {ignored.instead}"
    if config.use_full_data:
        yield "use_full_data holds out no validation images, which a search needs"
    if study.seed in {config.model_copy(update={"trial_num": number}).effective_seed for number in config.trials}:
        yield f"study.seed {study.seed} is the seed of a trial; what is found with it has to be confirmed with others"
    if study.metric == "val_acc_after_finetune":
        if config.skip_fine_tune:
            yield "skip_fine_tune leaves no val_acc_after_finetune (study.metric)"
    elif not config.algorithm.accurate_untrained:
        yield f"the accuracy before training is not what {config.algo} looks for; study.metric: val_acc_after_finetune"
    else:
        for option in sought:
            if option.startswith(("fine_tune_", "teacher")):
                yield f"{option} does not affect the accuracy before training; study.metric: val_acc_after_finetune"
    if study.pruner != "none":
        rounds = ("prune_rate",) if config.algorithm.search == "rounds" else ()  # it decides how many there are
        for option in (*LENGTHS, *rounds):
            if option in sought:
                yield f"with another {option} an epoch is not comparable to the same of other runs; study.pruner: none"
