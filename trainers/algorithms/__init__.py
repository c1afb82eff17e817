"""The table of algorithms: plain facts about each, so that reading it imports nothing. `load` imports one.

To add an algorithm: one file in this folder, one row here, and its options in `args_helper`. Read `magnitude` first: a
whole algorithm in two lines. `hypercube` is Gem-Miner, the heart of the tool; what it shares with the other searches
that learn scores is in `trainers.training.scores`. In all of them N is the number of prunable weights and d the
density, the fraction of them that a ticket keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from trainers.algorithms import contradictions as refused
from utils.options.contradictions import Contradiction


class Ignored(NamedTuple):
    """Options that an algorithm does not read, and what it does instead, to follow "which"."""

    options: tuple[str, ...]
    instead: str


class Algorithm(NamedTuple):
    """What the tool knows about an algorithm without importing it.

    Attributes:
        function: `module:function`, with the signature `find_ticket(net, data, config, run) -> Ticket`.
        title: its name in the paper.
        search: what it trains to find a ticket: scores, or the dense network's weights, for `epochs`; rounds of
            weights, the last of which is the trained ticket; a sparse network's weights, for `epochs`, which is the
            trained ticket; or nothing.
        gradual: whether it prunes during the search, after epochs set by `iter_period` and `iter_start`.
        bounded: whether its scores lie in [0, 1].
        accurate_untrained: whether it searches for a subnetwork that is accurate before training.
        rewinds: whether `rewind_epoch` epochs of dense training may precede the search.
        may_be_trained: whether the weights that its fine-tuning begins with may have been trained.
        inverts: whether `invert_sanity_check` makes it prune the highest scores.
        density_options: options that set a density, besides `target_sparsity`.
        defaults: option -> its default for this algorithm.
        auto_defaults: option -> its default with `lmbda: auto`.
        aims: whether its tickets have the density `target_sparsity`, unless another option sets one.
        prunings: `module:function` (config, number of weights, number of unpruned weights of every layer) -> what
            `--dry_run` reports of its prunings: pairs (when, weights remaining), or a sentence.
        does: what it does, where it shares its function, and so its docstring, with others.
        contradictions: combinations of options that it cannot use, beside those that none can.
    """

    function: str
    title: str
    search: Literal["scores", "weights", "rounds", "sparse", "none"] = "none"
    gradual: bool = False
    bounded: bool = False
    accurate_untrained: bool = False
    rewinds: bool = False
    may_be_trained: bool = False
    inverts: bool = False
    density_options: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}
    auto_defaults: Mapping[str, Any] = {}
    aims: bool = True
    prunings: str | None = None
    does: str = ""
    contradictions: tuple[Contradiction, ...] = ()

    @property
    def refused(self) -> tuple[Contradiction, ...]:
        """All combinations of options that it cannot use."""
        return (*refused.BY_ANY, *self.contradictions)

    @property
    def ignores(self) -> Ignored:
        """The options of training that it does not read although others do."""
        return _IGNORED[self.search]

    @property
    def learns_mask(self) -> bool:
        """Whether it learns scores by gradient, through masked layers."""
        return self.search == "scores"

    @property
    def at_initialisation(self) -> bool:
        """Whether it finds the mask before any weight is trained."""
        return self.search in ("scores", "none")

    @property
    def is_dense(self) -> bool:
        """Whether its ticket is the dense network."""
        return self.search == "weights"


_TUNING = tuple(f"fine_tune_{name}" for name in ("epochs", "optimizer", "lr", "lr_policy", "wd", "augment"))
_TUNING += ("teacher", "teacher_weight", "teacher_temperature")
_TRAINS = "optimizer, lr, lr_policy and wd"
_IGNORED = {
    "scores": Ignored(("lr_gamma",), "lowers its learning rate by gamma"),
    "weights": Ignored(("lr_gamma", *_TUNING), f"trains by epochs, {_TRAINS}"),
    "sparse": Ignored(("lr_gamma", *_TUNING), f"trains its ticket by epochs, {_TRAINS}"),
    "rounds": Ignored(
        ("epochs", "gamma", *_TUNING), f"trains its ticket in rounds, by iter_period, lr_gamma, {_TRAINS}"
    ),
    "none": Ignored(
        ("start_epoch", "optimizer", "lr", "lr_policy", "lr_gamma", "wd", "warmup_length"),
        "only fine-tunes, by fine_tune_lr and the like",
    ),
}
_HERE = "trainers.algorithms"
_GEM_MINER, _EDGE_POPUP, _IMP = f"{_HERE}.hypercube", f"{_HERE}.edge_popup", f"{_HERE}.imp"
_RIGL = f"{_HERE}.rigl"
CTS_SEARCH = {"optimizer": "adam", "lr": 0.1, "lr_policy": "multistep_lr", "wd": 0.0, "regularization": "none"}
"""The search options that the authors of `cts` use."""

_ANY_MASK = (*refused.LEARNS_MASK, refused.NO_MOVING_THRESHOLD)

ALGORITHMS = {
    "hc": Algorithm(
        f"{_GEM_MINER}:find_ticket", "Gem-Miner without pruning", "scores", bounded=True, accurate_untrained=True,
        aims=False, contradictions=(*_ANY_MASK, refused.ROUNDED),
        does="Learn a score in [0, 1] for every weight, and round it; nothing is pruned.",
    ),
    "hc_iter": Algorithm(
        f"{_GEM_MINER}:find_ticket", "Gem-Miner", "scores", gradual=True, bounded=True, accurate_untrained=True,
        inverts=True, prunings=f"{_GEM_MINER}:planned_prunings",
        does="Learn a score in [0, 1] for every weight, round it, and prune the lowest every `iter_period` epochs.",
        contradictions=(
            *refused.LEARNS_MASK, refused.ROUNDED, *refused.MOVING_THRESHOLD, *refused.GRADUAL, *refused.AUTO_LAMBDA,
        ),
        auto_defaults={
            "regularization": "L2", "hc_quantized": True, "prune_type": "ExactBottomK", "renew_batchnorm": True,
            "wd": 0.0,
        },
    ),
    "ep": Algorithm(
        f"{_EDGE_POPUP}:find_ticket", "edge-popup", "scores", accurate_untrained=True,
        does="Learn a score for every weight; keep the weights with the largest |score| of each layer.",
        density_options=("prune_rate",), contradictions=(*_ANY_MASK, *refused.UNBOUNDED, refused.FRACTION_IF_GIVEN),
    ),
    "global_ep": Algorithm(
        f"{_EDGE_POPUP}:find_ticket", "global edge-popup", "scores", accurate_untrained=True,
        does="Learn a score for every weight; keep the weights with the largest |score| of the network.",
        density_options=("prune_rate",), contradictions=(*_ANY_MASK, *refused.UNBOUNDED, refused.FRACTION_IF_GIVEN),
    ),
    "global_ep_iter": Algorithm(
        f"{_EDGE_POPUP}:find_ticket", "gradual global edge-popup", "scores", gradual=True, accurate_untrained=True,
        does="Learn a score for every weight; keep ever fewer of those with the largest |score| of the network.",
        prunings=f"{_EDGE_POPUP}:planned_prunings", contradictions=(*_ANY_MASK, *refused.UNBOUNDED, *refused.GRADUAL),
    ),
    "cts": Algorithm(
        f"{_HERE}.cts:find_ticket", "Concrete Ticket Search", "scores", rewinds=True, defaults=CTS_SEARCH,
        contradictions=(*_ANY_MASK, *refused.UNBOUNDED, refused.UNROUNDED, *refused.REWINDS),
    ),
    "imp": Algorithm(
        f"{_IMP}:find_ticket", "iterative magnitude pruning", "rounds", density_options=("imp_rounds",),
        may_be_trained=True, defaults={"prune_rate": 0.2}, prunings=f"{_IMP}:planned_prunings",
        contradictions=refused.ROUNDS,
    ),
    "rigl": Algorithm(
        f"{_RIGL}:find_by_gradient", "RigL", "sparse", prunings=f"{_RIGL}:planned_prunings"
    ),
    "set": Algorithm(
        f"{_RIGL}:find_at_random", "Sparse Evolutionary Training", "sparse", prunings=f"{_RIGL}:planned_prunings"
    ),
    "gmp": Algorithm(
        f"{_HERE}.gradual_magnitude:find_ticket", "gradual magnitude pruning", "sparse",
        defaults={"prune_type": "LocalBottomK"}, prunings=f"{_HERE}.gradual_magnitude:planned_prunings",
        contradictions=(refused.BY_MAGNITUDE,),
    ),
    "acdc": Algorithm(
        f"{_HERE}.acdc:find_ticket", "AC/DC", "sparse", prunings=f"{_HERE}.acdc:planned_prunings"
    ),
    "training": Algorithm(f"{_HERE}.dense:find_ticket", "dense training", "weights", aims=False),
    "smart_ratio": Algorithm(
        f"{_HERE}.smart_ratio:find_ticket", "smart ratio", density_options=("smart_ratio",),
        contradictions=(refused.OF_A_CLASSIFIER,),
    ),
    "random": Algorithm(f"{_HERE}.random_mask:find_uniform_ticket", "uniform random masks"),
    "random_erk": Algorithm(f"{_HERE}.random_mask:find_erk_ticket", "Erdős–Rényi-kernel random masks"),
    "random_subnet": Algorithm(
        f"{_HERE}.random_mask:find_random_subnet", "Bernoulli random masks", density_options=("prune_rate",),
        aims=False, contradictions=(refused.BY_CHANCE,),
    ),
    "magnitude": Algorithm(f"{_HERE}.magnitude:find_ticket", "magnitude at initialisation"),
    "snip": Algorithm(f"{_HERE}.snip:find_ticket", "SNIP"),
    "grasp": Algorithm(f"{_HERE}.grasp:find_ticket", "GraSP"),
    "synflow": Algorithm(f"{_HERE}.synflow:find_ticket", "SynFlow"),
    "given": Algorithm(
        f"{_HERE}.from_file:find_ticket", "ticket from a file", may_be_trained=True, aims=False,
        contradictions=refused.FROM_A_FILE,
    ),
}  # fmt: skip

OWN = Algorithm("", "an algorithm of one's own", "scores", accurate_untrained=True, inverts=True)
"""The facts assumed about a user's algorithm, `path/to/file.py:function`."""

DENSE, FROM_FILE = "training", "given"
ALSO_CALLED = {"gemminer": "hc_iter"}
"""What is no name of an algorithm, in lower case without - and _ -> the one that is probably meant."""


def facts_of(name: str) -> Algorithm:
    """Return an algorithm's row of the table; for a user's algorithm, `OWN`."""
    return ALGORITHMS.get(name, OWN)
