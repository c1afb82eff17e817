"""BatchNorm's running statistics of a network that nobody trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.loader import Batch


@torch.no_grad()
def renew_statistics(net: nn.Module, batches: Iterable[Batch]) -> None:
    """Set every BatchNorm's running mean and variance to the mean, over all images, of those of the batches.

    Nothing else of the network trains or drops out meanwhile; it is left in evaluation mode.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    for images, labels in batches if norms else ():
        if len(labels) > 1:  # of a single image there is no variance to be had
            seen += len(labels)
            for norm in norms:
                norm.momentum = len(labels) / seen
            net(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.eval()
