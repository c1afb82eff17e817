"""BatchNorm's running statistics: recompute them, and average them over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from data.load import Splits
from data.normalise import Batch
from trainers.tickets.ticket import Ticket
from utils.distributed import collectives as ranks
from utils.errors import UserError
from utils.masks import masked_state


@torch.no_grad()
def renew_statistics(net: nn.Module, batches: Iterable[Batch]) -> None:
    """Set every BatchNorm's running mean and variance to the batches' average, weighted by their numbers of images.

    All other layers run in evaluation mode, without dropout; the network is left in that mode.

    Args:
        net: plain; a network without BatchNorm reads no batch.
        batches: normalised images (B, C, H, W) and labels; a batch of one image is skipped.
    """
    norms = _norms(net)
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    for images, labels in batches if norms else ():
        if len(labels) > 1:  # a single image has no variance over the batch
            seen += len(labels)
            for norm in norms:  # mean <- (1 − momentum) · mean + momentum · the batch's: so it is the average so far
                norm.momentum = len(labels) / seen
            net(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()


def with_own_statistics(ticket: Ticket, network: nn.Module, batches: Iterable[Batch], accumulate: int = 1) -> Ticket:
    """Return a ticket whose BatchNorm statistics are estimated anew for the subnetwork that it is before training.

    The statistics that a search leaves are running averages over masks of earlier steps.

    Args:
        ticket: on the device of the batches.
        network: plain, of the ticket's architecture; it stays as it is.
        batches: an epoch of the training set, augmented as in the search. Without augmentation the statistics are
            others: on CIFAR-10, a gem of 1.2% of ResNet-20's weights then has 59.4% test accuracy instead of 65.3%.
        accumulate: as in training; batches are cut into the same parts, because these are known to fit.
    """
    own = deepcopy(network)  # not compiled: a compiled network would be compiled again for this mode
    own.load_state_dict(masked_state(ticket.state, ticket.untrained))
    renew_statistics(own, _cut(batches, accumulate * ranks.world_size()))
    statistics = {name: value.clone() for name, value in own.named_buffers(remove_duplicate=False)}
    return replace(ticket, state={name: statistics.get(name, value) for name, value in ticket.state.items()})


def _cut(batches: Iterable[Batch], parts: int) -> Iterator[Batch]:
    for images, labels in batches:
        count = ranks.in_parts(len(labels), parts)
        yield from zip(images.tensor_split(count), labels.tensor_split(count))


@torch.no_grad()
def average_statistics(net: nn.Module) -> None:
    """Average all running means and variances over the ranks; do nothing in a single process."""
    norms = [module for module in net.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    if not (ranks.is_distributed() and norms):
        return
    values = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    ranks.all_reduce_in_place(values)
    torch._foreach_div_(values, ranks.world_size())
    # The first rank's part of a batch is never empty, so it has counted all batches.
    counts = [norm.num_batches_tracked for norm in norms]
    torch._foreach_copy_(counts, list(ranks.broadcast(torch.stack(counts).cpu())))


@torch.no_grad()
def refuse_single_images(net: nn.Module, data: Splits) -> None:
    """Refuse batches that the network's BatchNorm cannot train on.

    Args:
        net: plain, on its device; unchanged.
        data: its first training batch has one image only if all have.

    Raises:
        UserError: every batch has one image, and the network has a BatchNorm that cannot train on one.
    """
    if data.train.size(0) > 1:
        return
    # Only trying tells: on maps of more than one pixel, one image is enough.
    tried = deepcopy(net).eval()
    for norm in _norms(tried):
        norm.train()
    try:
        tried(torch.zeros(1, *data.spec.shape, device=data.train.device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        given = "batch_size 1" if data.train.batch_size == 1 else "a training set of one image"
        raise UserError(
            f"{given}: this network has a BatchNorm on maps of 1×1 pixels, of which it takes mean and variance over "
            "the images of a batch: it needs two at least"
        ) from error


def _norms(net: nn.Module) -> list[_BatchNorm]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
