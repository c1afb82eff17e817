"""Runs in order: trials of an experiment, experiments of a series over densities, series of a task."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from args_helper import OPTIONS, TASK_OPTIONS, Config
from trainers.algorithms import facts_of
from trainers.checks.verdict import Verdict
from trainers.reporting.gather import Outcome, RunRecord
from trainers.results.trials import Spread, judge_checks

MOST_OPTIONS = 3
"""Options in the name of a series; with more of them, it is named by its folder."""


@dataclass(frozen=True)
class Experiment:
    """The trials with one config hash, by number."""

    config_hash: str
    runs: tuple[RunRecord, ...]

    @property
    def config(self) -> Config:
        """Its options (those of its first trial)."""
        return self.runs[0].config

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the finished trials."""
        return [run.outcome for run in self.runs if run.outcome]

    def spread(self, figure: str) -> Spread:
        """A figure of the outcomes over the finished trials."""
        return Spread.of(getattr(one, figure) for one in self.outcomes)

    @property
    def density(self) -> float:
        """Weights remaining in percent: as found, or as asked for where no trial is finished."""
        found = self.spread("weights_remaining_percent").mean
        return self.config.target_sparsity if found is None else found

    @property
    def layers(self) -> dict[str, Spread]:
        """Layer -> percent of its weights that remain, over the finished trials; in the network's order."""
        names = {name: None for outcome in self.outcomes for name in outcome.layers}
        counts = {name: [one.layers[name] for one in self.outcomes if name in one.layers] for name in names}
        return {name: Spread.of(100.0 * kept / whole for kept, whole in pairs) for name, pairs in counts.items()}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on every check, over its trials."""
        return judge_checks(one.model_dump() for one in self.outcomes)

    def beside(self, check: str) -> tuple[Spread, Spread]:
        """Test accuracy after training of tickets and of a check's networks, over the trials that ran the check."""
        if check == "score_inversion":  # such an experiment is itself the check of another
            inverted = [one for one in self.outcomes if one.inverts]
            upright = Spread.of(one.inverts.test_acc_after_finetune for one in inverted)
            return upright, Spread.of(one.test_acc_after_finetune for one in inverted)
        checked = [one for one in self.outcomes if check in one.checks]
        controls = Spread.of(one.checks[check].test_acc_after_finetune for one in checked)
        return Spread.of(one.test_acc_after_finetune for one in checked), controls


@dataclass(frozen=True)
class Series:
    """Experiments that differ in density, densest first.

    Attributes:
        name: unlike that of any other series of the task.
        experiments: at least one.
    """

    name: str
    experiments: tuple[Experiment, ...]

    @property
    def algo(self) -> str:
        """The algorithm of all of them."""
        return self.experiments[0].config.algo

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense network, which everything is measured against."""
        return facts_of(self.algo).is_dense

    @property
    def also_differs(self) -> dict[str, list[str]]:
        """Options other than density in which its experiments differ -> their values, densest first."""
        options = [_options(one.config) for one in self.experiments]
        return {name: [str(one[name]) for one in options] for name in _differing(options)}


@dataclass(frozen=True)
class Task:
    """A data set and a network, and what was run on them."""

    title: str
    config: Config
    series: tuple[Series, ...]

    @property
    def tickets(self) -> list[Series]:
        """All series but the dense network's."""
        return [one for one in self.series if not one.is_dense]

    @property
    def dense(self) -> list[Series]:
        """The dense network's series: one for each way it was trained."""
        return [one for one in self.series if one.is_dense]

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, in percent."""
        classes = {one.classes for series in self.series for run in series.experiments for one in run.outcomes}
        return 100.0 / min(classes) if classes else None


def tasks_of(runs: Sequence[RunRecord]) -> list[Task]:
    """Runs by task, series and experiment, in the order in which they were found."""
    by_task: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        by_task[_title(run.config)].append(run)
    return [Task(title, members[0].config, _series(members)) for title, members in by_task.items()]


def _title(config: Config) -> str:
    """A task in words: network and data set, with whatever of them is not the default."""
    decided = config.deciding()
    notes = [f"{name} {decided[name]}" for name in TASK_OPTIONS if name not in ("dataset", "arch", "seed")
             and name in decided and decided[name] != OPTIONS[name].default]  # fmt: skip
    return f"{config.arch} on {config.dataset}" + (f" ({', '.join(notes)})" if notes else "")


def _series(runs: Sequence[RunRecord]) -> tuple[Series, ...]:
    by_hash: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        by_hash[run.config_hash].append(run)
    by_key: dict[tuple, list[Experiment]] = defaultdict(list)
    for name, members in by_hash.items():
        experiment = Experiment(name, tuple(sorted(members, key=lambda run: run.trial)))
        family = family_of(experiment.config)
        key = (experiment.config.algo, family) if family else _by_options(experiment)
        by_key[key].append(experiment)
    for key, members in list(by_key.items()):
        if len({one.config.target_sparsity for one in members}) < len(members):  # two at one density are two series
            del by_key[key]
            for one in members:
                by_key[_by_options(one)].append(one)
    groups = [tuple(sorted(members, key=lambda one: -one.density)) for members in by_key.values()]
    named = zip(_names(groups), groups)
    return tuple(Series(name, members) for name, members in sorted(named, key=lambda one: one[0]))


def family_of(config: Config) -> str | None:
    """What the folders of runs that differ in density have in common: the run's place without its own density.

    `gem_miner/target_sparsity_1.5` of a sweep becomes `gem_miner`, `resnet20_sparsity_1_44_unflagT` of a published
    file `resnet20_unflagT`. None where the place does not tell the density.
    """
    place = "/".join(part for part in (config.subfolder, config.name, config.run_idx) if part)
    value = re.escape(f"{config.target_sparsity:g}").replace(r"\.", "[._]")
    token = rf"(?:(?:target_)?sparsity_)?{value}"
    without, count = re.subn(rf"^{token}(?:[/_-]|$)|[/_-]{token}(?=[/_-]|$)", "", place, count=1)
    return without if count else None


def _by_options(experiment: Experiment) -> tuple:
    # A run of another seed is another experiment and, at the same density, another series.
    return (experiment.config.algo, None, tuple(sorted((k, str(v)) for k, v in _options(experiment.config).items())))


def _options(config: Config) -> dict[str, Any]:
    """The options that affect the result, those of density and of the task left out."""
    left_out = {"target_sparsity", *config.algorithm.density_options} | (set(TASK_OPTIONS) - {"seed"})
    return {name: value for name, value in config.deciding().items() if name not in left_out}


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in options[0] if any(one.get(name) != options[0][name] for one in options)]


def _names(groups: Sequence[tuple[Experiment, ...]]) -> list[str]:
    """A name for each group, none twice: its family, or its algorithm and what sets it off from others of that."""
    names = []
    for group in groups:
        config = group[0].config
        alike = [_options(other[0].config) for other in groups if other[0].config.algo == config.algo]
        differing = _differing(alike)
        family = family_of(config)
        own = "dense" if config.algorithm.is_dense else config.algo
        if family and (config.name or len(differing) > MOST_OPTIONS):
            names.append(family.removeprefix(f"{config.subfolder}/"))
        elif len(differing) <= MOST_OPTIONS:
            mine = _options(config)
            names.append(", ".join([own, *(f"{name} {mine[name]}" for name in differing)]))
        else:
            place = "/".join(part for part in (config.subfolder, config.name, config.run_idx) if part)
            names.append(f"{own}, {place}" if place else own)
    return [name if names.count(name) == 1 else f"{name}, {group[0].config_hash}" for name, group in zip(names, groups)]
