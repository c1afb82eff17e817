"""SNIP: keep the connections whose removal would change the loss most.

With a mask m on the weights, ∂L/∂m = w · ∂L/∂w at m = 1: to first order, what the loss changes by when the weight goes.
The score is its magnitude. The paper divides by the sum over all weights, which changes no rank and is left out.

Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019 (arXiv 1810.02340).
"""

from __future__ import annotations

from copy import deepcopy
from itertools import islice

import torch.nn.functional as F
from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket
from trainers.training.cost import scoring_flops
from utils.distributed.collectives import in_parts
from utils.masks import keep_highest
from utils.rng import seeding_torch
from utils.run.run import Run


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Score |w · ∂L/∂w| over `score_batches` training batches and keep the ⌊dN⌋ highest of the network.

    Args:
        net: plain, with its weights drawn; unchanged.
        data: gives the training batches, augmented.
        config: `score_batches`, `score_parts` and the target.
        run: its random streams choose the batches and break ties.

    Returns:
        The ticket, with the FLOPs of the scoring among its facts.
    """
    scored = deepcopy(net).train().requires_grad_(True)  # a copy, so that the BatchNorm statistics of `net` stay
    flops = 0
    with seeding_torch(run.rng("search", "network")):
        for images, labels in islice(data.train.epoch(run.rng("search", "batches")), config.score_batches):
            flops += scoring_flops(net, images)
            # In parts that fit in memory; their gradients add up to that of the mean over the batch.
            parts = in_parts(len(labels), config.score_parts)
            for part, targets in zip(images.tensor_split(parts), labels.tensor_split(parts)):
                (F.cross_entropy(scored(part), targets, reduction="sum") / len(labels)).backward()
    scores = {name: (weight * weight.grad).detach().abs() for name, weight in prunable_parameters(scored).items()}
    masks = keep_highest(scores, config.density, run.rng("search", "ties"))
    return Ticket(plain_state(net), masks, facts={"scoring_flops": flops})
