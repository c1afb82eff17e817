"""Gem-Miner (`hc_iter`), and the same search without pruning (`hc`).

Weights w stay as drawn. The search learns scores s in [0, 1] and keeps flags f in {0, 1}, which mark unpruned weights:

    s <- draw by score_init;  f <- 1
    for each epoch e, from 0:
        for each batch:
            clamp s to [0, 1]                                         every `project_freq` steps
            loss = CE(network of w · 1[s > t] · f) + λR(s)            t = `quantize_threshold`, λ = `lmbda`
            s <- optimizer's step along ∂loss/∂s                      straight through the rounding: ∂CE/∂s = g · w · f
        evaluate
        if e > iter_start and e mod iter_period = 0:                  `hc_iter` only
            f <- 0 for the ⌈p·n⌉ lowest s of the n unpruned weights, by `prune_type`
    gem = f · 1[s > t];  ticket = f with `unflag_before_finetune`, else the gem

Here g is the gradient of the effective weight, and p = 1 − d^(1/k) makes k prunings end at density d. With
`hc_quantized: False` the forward pass takes w · s · f instead, and s is rounded only at the end.

Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022 (arXiv 2202.12002),
Algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import partial

from torch import nn

from args_helper import Config
from data.load import Splits
from models.build import mask_with_scores
from models.masking import plain_state
from trainers.algorithms.auto_lambda import AutoLambda
from trainers.algorithms.gem_miner import GemMiner, exact_count, pruning_rate_from, prunings_ahead
from trainers.checks.connectivity import effective_masks
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train
from utils.masks import ceil_count, floor_count
from utils.run.run import Run


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Learn a score in [0, 1] for every weight through rounding; `hc_iter` also prunes the lowest scores.

    Args:
        net: plain, with its weights drawn; its layers are masked in place.
        data: what to learn on.
        config: the options of the search.
        run: where the search is stored.

    Returns:
        The ticket. Its gem is what is switched on at the end; its masks are the same or, with `unflag_before_finetune`,
        all weights that were never pruned. If no weight is switched on (the search has died), it has no gem, and its
        masks keep the ⌊dN⌋ highest scores of all weights, pruned ones included.

    Raises:
        UserError: `pretrained` does not fit the network, or see `train`, which also raises Stopped and Diverged.
    """
    auto, effective = None, None
    if config.lmbda == "auto":
        auto = AutoLambda(config, len(data.train))
        effective = partial(effective_masks, deepcopy(net), shape=data.spec.shape)  # a copy that stays plain
    mask_with_scores(net, config, config.score_init)
    search = GemMiner(net, config, auto, effective)
    train(run, "search", search, data, config.epochs, config.start_epoch)

    state, gem = plain_state(net), search.flat.split(search.naive_mask().clone())
    if search.has_died():
        died = f"the search died after epoch {run.rows('search')[-1]['epoch']}: no weight is switched on any more"
        warnings.warn(f"{died}; the highest scores are kept", stacklevel=2)
        highest = search.highest(floor_count(config.density, search.weights), run.rng("search", "rescue"))
        return Ticket(state, highest, None, {"rescued": True})
    if config.unflag_before_finetune and bool(search.flat.flags.all()):
        warnings.warn("nothing was pruned for good, so that unflagging restores the dense network", stacklevel=2)
    masks = search.flat.split(search.flat.flags.clone()) if config.unflag_before_finetune else gem
    facts = {"rescued": False, "density_reason": search.density_reason()}
    return Ticket(state, masks, gem, facts if config.lmbda != "auto" else {**facts, "lmbda": search.lmbda})


def planned_prunings(config: Config, whole: int, layers: Sequence[int]) -> str | list[tuple[str, int]]:
    """List after which epochs it prunes and how many unpruned weights then remain, if no scores tie.

    Args:
        config: the options of the search.
        whole: number of prunable weights, N.
        layers: how many weights of each layer are unpruned when the search begins: all, or fewer by the flags in
            `pretrained`.

    Returns:
        Pairs (when, weights remaining) in order; or a sentence, if there are no counts to tell.
    """
    ahead, rate, planned = prunings_ahead(config), pruning_rate_from(config, sum(layers) / whole), []
    if not ahead:
        return f"none: start_epoch {config.start_epoch} lies after that of epoch {config.prunings[-1]}"
    if config.prune_type == "FixThresholding":
        epochs = ", ".join(map(str, ahead))
        return f"after epochs {epochs}: of every weight whose score is up to 0.5, however many these are"
    # LocalBottomK rounds the count of every layer up, the others that of the whole network.
    left = [*layers] if config.prune_type == "LocalBottomK" else [sum(layers)]
    for epoch in ahead:
        if config.prune_type == "ExactBottomK":
            left = [n - exact_count(config, rate, n, whole, epoch == ahead[-1]) for n in left]
        else:
            left = [n - ceil_count(rate, n) for n in left]
        planned.append((f"after epoch {epoch}", sum(left)))
    return planned
