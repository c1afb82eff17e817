"""GraSP: keep the weights whose removal would hurt the gradient flow most.

Removing a weight changes the squared norm of the gradient g, to first order, in proportion to −w · (Hg), H being the
Hessian of the loss. The highest of these scores mark weights without which the gradient flow would grow: they go.
Logits are divided by 200, the authors' temperature, which flattens the softmax.

Source: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020 (arXiv
2002.07376), Algorithm 1.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from args_helper import Config
from data.load import Splits
from data.normalise import Batch
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket
from trainers.training.cost import scoring_flops
from utils.distributed.collectives import in_parts
from utils.masks import keep_highest
from utils.rng import seeding_torch
from utils.run.run import Run

IMAGES_A_CLASS = 10
TEMPERATURE = 200.0


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Score every weight −w · (Hg), prune the highest and keep the ⌊dN⌋ lowest of the network.

    Args:
        net: plain, with its weights drawn; unchanged.
        data: gives ten training images of every class, not augmented.
        config: `score_parts` and the target.
        run: its random streams choose the images and break ties.

    Returns:
        The ticket, with the FLOPs of the scoring among its facts.
    """
    images, labels = data.train.stratified(IMAGES_A_CLASS, run.rng("search", "batches"))
    parts = in_parts(len(labels), max(2, config.score_parts))  # two halves; more parts if they do not fit in memory
    with seeding_torch(run.rng("search", "network")):
        flow = gradient_flow(deepcopy(net), [*zip(images.tensor_split(parts), labels.tensor_split(parts))])
    # The lowest score −w · (Hg) is the highest w · (Hg).
    masks = keep_highest(flow, config.density, run.rng("search", "ties"))
    # One gradient; then another that is itself differentiated, by a backward pass twice as long.
    flops = scoring_flops(net, images) + scoring_flops(net, images, backward=3)
    return Ticket(plain_state(net), masks, facts={"scoring_flops": flops})


def gradient_flow(net: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """w · (Hg) for every entry of the prunable parameters, summed over the batches.

    Args:
        net: plain; BatchNorm runs in training mode, which changes its statistics.
        batches: g is the sum of their gradients, H the sum of their Hessians; logits are divided by 200.

    Returns:
        Parameter name -> tensor of its shape.
    """
    net.train().requires_grad_(True)
    parameters = prunable_parameters(net)
    weights = list(parameters.values())

    def gradient(batch: Batch, create_graph: bool) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(net(batch[0]) / TEMPERATURE, batch[1])
        return torch.autograd.grad(loss, weights, create_graph=create_graph)

    total = [sum(parts) for parts in zip(*(gradient(batch, create_graph=False) for batch in batches))]
    flow = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    for batch in batches:
        # Hg without the matrix H: g is a constant here, so the gradient of g · ∇L is Hg.
        with sdpa_kernel(SDPBackend.MATH):  # no other attention can be differentiated twice
            along = sum((g * part).sum() for g, part in zip(total, gradient(batch, create_graph=True)))
        for (name, weight), product in zip(parameters.items(), torch.autograd.grad(along, weights)):
            flow[name] += (weight * product).detach()
    return flow
