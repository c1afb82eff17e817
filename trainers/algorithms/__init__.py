"""Algorithms by name: plain facts, so that knowing them imports nothing. `load` imports one.

A new algorithm is one file in this folder, one row here, and its options in `args_helper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Algorithm(NamedTuple):
    """What the tool has to know of an algorithm before it is imported.

    Attributes:
        function: `module:function`, with the signature `find_ticket(net, data, config, run) -> Ticket`.
        title: as its paper calls it.
        search: what it trains to find a ticket: scores, or the dense network's weights, for `epochs`; rounds of
            weights, the last of which is the trained ticket; or nothing.
        gradual: whether it prunes after the epochs that `iter_period` and `iter_start` name.
        bounded: whether its scores lie in [0, 1].
        accurate_untrained: whether it searches for a subnetwork that is accurate before training.
        rewinds: whether the search may follow `rewind_epoch` epochs of dense training.
        density_options: options that ask for a density, beside `target_sparsity`.
        defaults: option -> its value for this algorithm, unless it is given.
        prunings: `module:function` (config, weights, unpruned weights) -> what `--dry_run` says of its prunings: pairs
            of when and the weights that are left, or a sentence.
    """

    function: str
    title: str
    search: Literal["scores", "weights", "rounds", "none"] = "none"
    gradual: bool = False
    bounded: bool = False
    accurate_untrained: bool = False
    rewinds: bool = False
    density_options: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}
    prunings: str | None = None

    @property
    def learns_mask(self) -> bool:
        """Whether it learns scores by gradient, through masked layers."""
        return self.search == "scores"

    @property
    def is_dense(self) -> bool:
        """Whether its ticket is the dense network."""
        return self.search == "weights"


_HERE = "trainers.algorithms"
_GEM_MINER, _EDGE_POPUP, _IMP = f"{_HERE}.hypercube", f"{_HERE}.edge_popup", f"{_HERE}.imp"
CTS_SEARCH = {"optimizer": "adam", "lr": 0.1, "lr_policy": "multistep_lr", "wd": 0.0}
"""How the authors of `cts` run its search."""

ALGORITHMS = {
    "hc": Algorithm(
        f"{_GEM_MINER}:find_ticket", "Gem-Miner without pruning", "scores", bounded=True, accurate_untrained=True
    ),
    "hc_iter": Algorithm(
        f"{_GEM_MINER}:find_ticket", "Gem-Miner", "scores", gradual=True, bounded=True, accurate_untrained=True,
        prunings=f"{_GEM_MINER}:planned_prunings",
    ),
    "ep": Algorithm(
        f"{_EDGE_POPUP}:find_ticket", "edge-popup", "scores", accurate_untrained=True, density_options=("prune_rate",)
    ),
    "global_ep": Algorithm(
        f"{_EDGE_POPUP}:find_ticket", "global edge-popup", "scores", accurate_untrained=True,
        density_options=("prune_rate",),
    ),
    "global_ep_iter": Algorithm(
        f"{_EDGE_POPUP}:find_ticket", "gradual global edge-popup", "scores", gradual=True, accurate_untrained=True,
        prunings=f"{_EDGE_POPUP}:planned_prunings",
    ),
    "cts": Algorithm(
        f"{_HERE}.cts:find_ticket", "Concrete Ticket Search", "scores", rewinds=True, defaults=CTS_SEARCH
    ),
    "imp": Algorithm(
        f"{_IMP}:find_ticket", "iterative magnitude pruning", "rounds", density_options=("imp_rounds",),
        defaults={"prune_rate": 0.2}, prunings=f"{_IMP}:planned_prunings",
    ),
    "training": Algorithm(f"{_HERE}.dense:find_ticket", "dense training", "weights"),
    "smart_ratio": Algorithm(
        f"{_HERE}.smart_ratio:find_ticket", "smart ratio", density_options=("smart_ratio",)
    ),
    "random": Algorithm(f"{_HERE}.random_mask:find_uniform_ticket", "uniform random masks"),
    "random_erk": Algorithm(f"{_HERE}.random_mask:find_erk_ticket", "Erdős–Rényi-kernel random masks"),
    "random_subnet": Algorithm(
        f"{_HERE}.random_mask:find_random_subnet", "Bernoulli random masks", density_options=("prune_rate",)
    ),
    "magnitude": Algorithm(f"{_HERE}.magnitude:find_ticket", "magnitude at initialisation"),
    "snip": Algorithm(f"{_HERE}.snip:find_ticket", "SNIP"),
    "grasp": Algorithm(f"{_HERE}.grasp:find_ticket", "GraSP"),
    "synflow": Algorithm(f"{_HERE}.synflow:find_ticket", "SynFlow"),
    "given": Algorithm(f"{_HERE}.from_file:find_ticket", "ticket from a file"),
}  # fmt: skip

OWN = Algorithm("", "an algorithm of one's own", "scores", accurate_untrained=True)
"""What is assumed of a user's own `path/to/file.py:function`."""

DENSE, FROM_FILE = "training", "given"


def facts_of(name: str) -> Algorithm:
    """The row of an algorithm, or what is assumed of a user's own."""
    return ALGORITHMS.get(name, OWN)
