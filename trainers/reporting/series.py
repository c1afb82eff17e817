"""Group runs: trials into experiments, experiments of several densities into series, series into tasks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from args_helper import OPTIONS, TASK_OPTIONS, Config
from trainers.algorithms import ALGORITHMS, FROM_FILE, facts_of
from trainers.checks.verdict import Verdict
from trainers.reporting.gather import Outcome, RunRecord
from trainers.results.trials import Spread, check_pairs, judge_checks

Item = TypeVar("Item")
OF_A_TASK = set(TASK_OPTIONS) - {"seed", "bn_type"}
"""What all runs of a task share. A seed makes another experiment, and `bn_type` may be a rung of a ladder."""
MOST_OPTIONS = 3
"""Most options that the name of a series lists; with more, it is named after its folder."""


@dataclass(frozen=True)
class Experiment:
    """The trials with one config hash, sorted by number."""

    config_hash: str
    runs: tuple[RunRecord, ...]

    @property
    def config(self) -> Config:
        """The options (of the first trial)."""
        return self.runs[0].config

    @property
    def origin(self) -> int:
        """The number of the files that it began from (see `RunRecord`)."""
        return self.runs[0].origin

    @property
    def outcomes(self) -> list[Outcome]:
        """The results of the finished trials."""
        return [run.outcome for run in self.runs if run.outcome]

    def spread(self, metric: str) -> Spread:
        """Return average and standard deviation of a metric over the finished trials."""
        return Spread.of(getattr(one, metric) for one in self.outcomes)

    @property
    def density(self) -> float:
        """Weights remaining in percent: the average found, or the target if no trial is finished."""
        found = self.spread("weights_remaining_percent").mean
        return self.config.target_sparsity if found is None else found

    @property
    def target(self) -> float | None:
        """Weights that were to remain, in percent; None if the method or another option decided how many do."""
        return self.config.target_sparsity if self.config.has_target else None

    @property
    def layers(self) -> dict[str, Spread]:
        """Layer -> percent of its weights that remain, over the finished trials; in network order."""
        names = {name: None for outcome in self.outcomes for name in outcome.layers}
        counts = {name: [one.layers[name] for one in self.outcomes if name in one.layers] for name in names}
        return {name: Spread.of(100.0 * kept / whole for kept, whole in pairs) for name, pairs in counts.items()}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Check -> its verdict over the trials."""
        return judge_checks(one.model_dump() for one in self.outcomes)

    def beside(self, check: str) -> tuple[Spread, Spread]:
        """Return test accuracy after training of tickets and of a check's networks, over the trials with this check."""
        pairs = check_pairs(one.model_dump() for one in self.outcomes).get(check, [])
        return Spread.of(ticket for ticket, _ in pairs), Spread.of(control for _, control in pairs)


@dataclass(frozen=True)
class Series:
    """Experiments that differ in density, densest first.

    Attributes:
        name: unique in the task.
        experiments: at least one.
    """

    name: str
    experiments: tuple[Experiment, ...]

    @property
    def algo(self) -> str:
        """The algorithm of all experiments."""
        return self.experiments[0].config.algo

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense network, to which everything is compared."""
        return facts_of(self.algo).is_dense

    @property
    def at_initialisation(self) -> bool:
        """Whether its masks were found before any weight was trained, or its tickets' files do not tell."""
        drawn = all(one.as_drawn is not False for experiment in self.experiments for one in experiment.outcomes)
        return self.algo == FROM_FILE or (facts_of(self.algo).at_initialisation and drawn)

    @property
    def also_differs(self) -> dict[str, list[str]]:
        """Options other than density that differ between its experiments -> their values, densest first."""
        options = [_options(one.config) for one in self.experiments]
        return {name: [str(one[name]) for one in options] for name in _differing(options)}


@dataclass(frozen=True)
class Task:
    """A data set, a network, and the runs on them.

    Attributes:
        title: names both, and their options that differ from the defaults; unique in the report.
        config: of its first run, for the options that all its runs share.
        series: sorted by name.
    """

    title: str
    config: Config
    series: tuple[Series, ...]

    @property
    def tickets(self) -> list[Series]:
        """All series except the dense network's."""
        return [one for one in self.series if not one.is_dense]

    @property
    def dense(self) -> list[Series]:
        """The dense network's series: one for each way it was trained."""
        return [one for one in self.series if one.is_dense]

    @property
    def chance(self) -> float | None:
        """The accuracy of random guessing, in percent."""
        classes = {one.classes for series in self.series for run in series.experiments for one in run.outcomes}
        return 100.0 / min(classes) if classes else None


def tasks_of(runs: Sequence[RunRecord]) -> list[Task]:
    """Group runs by task, series and experiment, in the order of the runs.

    A task is a network and a data set with their options. Within it, runs of one `config_hash` are an experiment, and
    experiments of one algorithm that differ in density alone are a series: a line of the plots.

    Args:
        runs: as gathered; each trial once.
    """
    by_task = grouped(runs, lambda run: _title(run.config))
    return [Task(title, members[0].config, _series(members)) for title, members in by_task.items()]


def grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Group items by a key, in order of first appearance."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _title(config: Config) -> str:
    """Name a task: network and data set, with those of their options that differ from the defaults."""
    decided = config.deciding()
    notes = [f"{name} {decided[name]}" for name in TASK_OPTIONS if name in OF_A_TASK - {"dataset", "arch"}
             and name in decided and decided[name] != OPTIONS[name].default]  # fmt: skip
    return f"{config.arch} on {config.dataset}" + (f" ({', '.join(notes)})" if notes else "")


def _series(runs: Sequence[RunRecord]) -> tuple[Series, ...]:
    experiments = [
        Experiment(name, tuple(sorted(members, key=lambda run: run.trial)))
        for name, members in grouped(runs, lambda run: run.config_hash).items()
    ]
    # A run with another seed is another experiment and, at the same density, another series.
    by_key = grouped(
        experiments, lambda one: (one.config.algo, family_of(one.config) or str(_options(one.config)), one.origin)
    )
    for key, members in list(by_key.items()):
        if len({one.config.target_sparsity for one in members}) < len(members):  # two at one density are two series
            del by_key[key]
            for one in members:
                by_key[one.config.algo, str(_options(one.config)), one.origin].append(one)
    groups = [tuple(sorted(members, key=lambda one: -one.density)) for members in by_key.values()]
    named = zip(_names(groups), groups)
    return tuple(Series(name, members) for name, members in sorted(named, key=lambda one: one[0]))


def family_of(config: Config) -> str | None:
    """Return the path of a run without its density: runs that differ only in density share it.

    `gem_miner/target_sparsity_1.5` of a sweep becomes `gem_miner`, and `resnet20_sparsity_1_44_unflagT` of a published
    file becomes `resnet20_unflagT`. None if the path does not contain the density.
    """
    place = _place(config)
    value = re.escape(f"{config.target_sparsity:g}").replace(r"\.", "[._]") + r"(?:\.0)?"
    for token in (rf"(?:target_)?sparsity_{value}", value):  # without the name: another option may have the same value
        for found in re.finditer(rf"^{token}(?:[/_-]|$)|[/_-]{token}(?=[/_-]|$)", place):
            before = place[: found.start()].rpartition("/")[2]
            if token != value or before not in OPTIONS or before in ALGORITHMS:
                return place[: found.start()] + place[found.end() :]
    return None


def _place(config: Config) -> str:
    """Return the path of a run among the results, without its trial."""
    return "/".join(part for part in (config.subfolder, config.name, config.run_idx) if part)


def _options(config: Config) -> dict[str, Any]:
    """Return the options that affect the result, without those of density and of the task."""
    left_out = {"target_sparsity", *config.algorithm.density_options, *OF_A_TASK}
    return {name: value for name, value in config.deciding().items() if name not in left_out}


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in options[0] if any(one.get(name) != options[0][name] for one in options)]


def _names(groups: Sequence[tuple[Experiment, ...]]) -> list[str]:
    """Give each group a unique name: its runs', or its algorithm and the options that differ from the others'."""
    names = []
    for group in groups:
        config = group[0].config
        alike = [_options(other[0].config) for other in groups if other[0].config.algo == config.algo]
        differing = _differing(alike)
        place, family = _place(config), family_of(config)
        if not family and not config.algorithm.is_dense and {_place(one.config) for one in group} == {place}:
            family = config.name and place  # in a sweep, a run of one density need not have it in its name
        own = "dense" if config.algorithm.is_dense else config.algo
        if family and (config.name or len(differing) > MOST_OPTIONS):
            names.append(family.removeprefix(f"{config.subfolder}/"))
        elif len(differing) <= MOST_OPTIONS:
            mine = _options(config)
            names.append(", ".join([own, *(f"{name} {mine[name]}" for name in differing)]))
        else:
            names.append(f"{own}, {place}" if place else own)
    return [name if names.count(name) == 1 else f"{name}, {group[0].config_hash}" for name, group in zip(names, groups)]
