"""SynFlow: iteratively keep the weights with the most synaptic flow, without data.

In a network of linear layers, R = 1ᵀ · (∏ |W_l|) · 1 sums, over all paths from input to output, the product of the
magnitudes on the path; w · ∂R/∂w is the part of R that runs through w. Scored once, whole layers can lose all their
weights; pruning a little and scoring again, 100 times, avoids it: where a layer has few weights left, each carries more
of the flow.

Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS 2020
(arXiv 2006.05467), Algorithm 1.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket
from trainers.training.cost import scoring_flops
from utils.environment import device_of_doubles
from utils.masks import all_kept, keep_highest
from utils.run.run import Run

ROUNDS = 100


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Prune in 100 rounds, k = 0 to 99, to density d^((k+1)/100), by the synaptic flow of the network masked so far.

    Args:
        net: plain, with its weights drawn; unchanged.
        data: only the shape of its images is used.
        config: the target.
        run: its random stream breaks the ties.

    Returns:
        The ticket, with the FLOPs of the scoring among its facts.
    """
    # Double precision: products over the layers of a deep network leave the range of single precision.
    device = next(net.parameters()).device
    flow = deepcopy(net).to(device_of_doubles(str(device))).double().eval().requires_grad_(True)
    with torch.no_grad():
        for tensor in (*flow.parameters(), *flow.buffers()):
            if tensor.is_floating_point():  # not a mask or an index
                tensor.abs_()
    ones = torch.ones(1, *data.spec.shape, dtype=torch.float64, device=next(flow.parameters()).device)
    masks = all_kept(prunable_parameters(flow))
    for done in range(1, ROUNDS + 1):
        scores = {name: _as_precise_as_single(score) for name, score in synaptic_flow(flow, ones).items()}
        scores = {name: score.where(masks[name], -1.0) for name, score in scores.items()}  # what is pruned stays so
        masks = keep_highest(scores, config.density ** (done / ROUNDS), run.rng("search", "ties", step=done))
        with torch.no_grad():
            for name, parameter in prunable_parameters(flow).items():
                parameter.mul_(masks[name])
    if by_chance := sum(int((masks[name] & (score == 0)).sum()) for name, score in scores.items()):
        warnings.warn(f"synflow: no flow reaches {by_chance:,} of the weights that it keeps, by chance", stacklevel=2)
    masks = {name: mask.to(device) for name, mask in masks.items()}
    return Ticket(plain_state(net), masks, facts={"scoring_flops": ROUNDS * scoring_flops(net, ones)})


def synaptic_flow(net: nn.Module, ones: torch.Tensor) -> dict[str, torch.Tensor]:
    """|w · ∂R/∂w| of the prunable parameters, R being the sum of the outputs for an input of ones.

    Args:
        net: plain, in evaluation mode, all its parameters and buffers at least 0.
        ones: (1, channels, height, width), of the parameters' type.

    Returns:
        Parameter name -> tensor of its shape, entries at least 0.
    """
    parameters = prunable_parameters(net)
    gradients = torch.autograd.grad(net(ones).sum(), list(parameters.values()))
    return {name: (weight * g).detach().abs() for (name, weight), g in zip(parameters.items(), gradients)}


def _as_precise_as_single(scores: torch.Tensor) -> torch.Tensor:
    """Round to the digits of single precision, in the range of double.

    Where weights have one magnitude in a layer, flows are equal by symmetry, and only the order of sums, which depends
    on the device, tells them apart. Rounded they tie, and ties are broken at random.
    """
    mantissa, exponent = torch.frexp(scores)
    return torch.ldexp(mantissa.float().double(), exponent)
