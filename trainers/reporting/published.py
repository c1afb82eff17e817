"""The paper's results, each with the config that repeats its setting, compared to the runs that match it.

To add a result, add a row to `PUBLISHED`, and a config under `configs/` unless its setting has one. The report
(`trainers.reporting.contents`) and the README's table (`trainers.reporting.measured`) read it from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from args_helper import Config, parse_args
from trainers.reporting.series import Experiment
from trainers.results.trials import Spread
from utils.options.changes import changes, written

SOURCE = "Sreenivasan et al., NeurIPS 2022, arXiv 2202.12002"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BEFORE, AFTER = "test_acc_before_finetune", "test_acc_after_finetune"
WITHIN = 0.05
"""Largest relative difference from the paper's density: 1.44% is compared to what the paper calls 1.4%."""
SAME = (
    "dataset", "arch", "width", "algo", "hc_quantized", "unflag_before_finetune", "invert_sanity_check",
    "imp_no_rewind", "imp_rewind_iter", "teacher",
)  # fmt: skip
"""Options in which a run must equal the paper's setting to be compared; other differences are listed."""


@dataclass(frozen=True)
class Published:
    """A result of the paper.

    Attributes:
        name: of the method, as the paper calls it.
        file: under `configs/`, with the paper's setting as far as known.
        metric: a summary's metric, or a sanity check; the accuracy is then that of the trained control network.
        percent: test accuracy.
        density: weights remaining in percent, as the paper gives it.
        epochs: of the search, if the paper states them.
    """

    name: str
    file: str
    metric: str
    percent: float
    density: float
    epochs: int | None = None

    @cached_property
    def config(self) -> Config:
        """The paper's setting."""
        return parse_args(["--config", str(CONFIGS / self.file)])


SHORT = "resnet20/resnet20_sparsity_{}_unflagT.yml"
PUBLISHED = (
    Published("Gem-Miner", SHORT.format("3_72"), AFTER, 83.4, 3.72, 150),
    Published("Gem-Miner", SHORT.format("3_72"), "mask_shuffle", 78.73, 3.72, 150),
    Published("Gem-Miner", SHORT.format("3_72"), "weight_reinit", 78.6, 3.72, 150),
    Published("Gem-Miner", SHORT.format("1_44"), AFTER, 77.89, 1.44, 150),
    Published("Long Gem-Miner", "resnet20/resnet20_sparsity_1_44_long.yml", AFTER, 79.50, 1.4, 3000),
    Published("IMP, warm", "imp/resnet20_long_warm.yml", AFTER, 74.52, 1.4),
    Published("Learning-rate rewinding", "imp/resnet20_long_lr_rewinding.yml", AFTER, 80.21, 1.4, 3000),
    Published("Gem-Miner", SHORT.format("0_59"), AFTER, 66.15, 0.59, 150),
    Published("Gem-Miner", SHORT.format("0_59"), BEFORE, 45.30, 0.59, 150),
)


def published_for(config: Config) -> list[Published]:
    """Return the paper's results for a task: same network, same data set (not another one with the same images)."""
    return [one for one in PUBLISHED if all(_same(one.config, config, name) for name in ("dataset", "arch", "width"))]


def beside_published(
    experiments: Sequence[Experiment], published: Sequence[Published], same: Sequence[str] = SAME
) -> Iterator[dict[str, Any]]:
    """Yield a row per published result and experiment that repeats it; one without our values if none does.

    Args:
        experiments: ours.
        published: the paper's results.
        same: options in which an experiment must equal the paper's setting.

    Yields:
        Accuracies and weights remaining in percent, `difference` (ours − paper) in percentage points, and `differs_in`,
        the other options that differ; an experiment stands beside at most one result of each metric.
    """
    for one in published:
        attempts = [
            other
            for other in experiments
            if _measured(other, one.metric).n and _nearest(other, published, one.metric, same) is one
        ]
        for experiment in attempts or [None]:
            ours = Spread(None, None, 0) if experiment is None else _measured(experiment, one.metric)
            yield {
                "method": one.name,
                "figure": one.metric,
                "paper_weights_remaining_percent": one.density,
                "paper": one.percent,
                **ours.columns("ours"),
                "n": ours.n,
                "difference": None if ours.mean is None else ours.mean - one.percent,
                "ours_weights_remaining_percent": experiment and experiment.density,
                "paper_search_epochs": one.epochs,
                "ours_search_epochs": experiment and _search_epochs(experiment),
                "differs_in": experiment and _differing(one.config, experiment.config),
                "config_hash": experiment and experiment.config_hash,
                "paper_setting": f"configs/{one.file}",
            }


def _measured(experiment: Experiment, metric: str) -> Spread:
    return experiment.spread(metric) if metric in (BEFORE, AFTER) else experiment.beside(metric)[1]


def _nearest(
    experiment: Experiment, published: Sequence[Published], metric: str, same: Sequence[str]
) -> Published | None:
    """Return the published result nearest to an experiment: same method and density, search most alike in length."""

    def far(one: Published) -> tuple[float, float]:
        longer = math.log(experiment.config.epochs / one.config.epochs)
        return abs(longer), abs(experiment.density - one.density)

    near = [
        one
        for one in published
        if one.metric == metric
        and abs(experiment.density / one.density - 1) <= WITHIN
        and all(_same(one.config, experiment.config, name) for name in same)
        # With rounds, this is the length of one: short and long IMP are two methods.
        and (one.config.algorithm.search != "rounds" or _same(one.config, experiment.config, "iter_period"))
    ]
    return min(near, key=far, default=None)


def _search_epochs(experiment: Experiment) -> int | None:
    return next((one.cost["search"].epochs for one in experiment.outcomes if "search" in one.cost), None)


def _same(one: Config, other: Config, name: str) -> bool:
    return getattr(one, name) == getattr(other, name)


def _differing(paper: Config, ours: Config) -> str:
    """List the options, except the seed, that affect the result and differ from the paper's: `name theirs → ours`."""
    theirs, own = ({**one.deciding(), "seed": None} for one in (paper, ours))
    return written(changes(theirs, {name: own.get(name) for name in theirs}), "; ")
