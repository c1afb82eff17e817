"""Smart ratios: random masks whose layer densities fall with depth.

Layer l of L (the classifier included) keeps the fraction a · ((L − l + 1)² + (L − l + 1)), in VGG networks divided by
l²; the classifier keeps 0.3. The factor a is solved for so that all together keep 1 − `smart_ratio` of the weights. A
fraction above 1 becomes 1, and what is left over moves on to the next layers.

Source: Su et al., "Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot", NeurIPS 2020 (arXiv
2009.11094), §5.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket
from utils.errors import UserError
from utils.masks import floor_count, is_bias, random_masks
from utils.run.run import Run

CLASSIFIER_RATIO = 0.3
# Version 2 (ResNet-20): fraction pruned -> ratios of the first layer and of the classifier.
SECOND_VERSION = {0.9856: (0.3449074074074074, 0.259375), 0.9628: (0.4143518518518518, 0.546875)}


def find_ticket(net: nn.Module, _data: Splits, config: Config, run: Run) -> Ticket:
    """Keep ⌊ratio · n⌋ random weights of each layer, and biases at the target density.

    Args:
        net: plain, with its weights drawn; unchanged.
        config: `smart_ratio`, the fraction to prune (below 0: by the target); `sr_version`; `arch`.
        run: its random stream draws the masks.

    Raises:
        UserError: see `layer_counts`.
    """
    pruned = config.smart_ratio if config.smart_ratio >= 0 else 1.0 - config.density
    parameters = prunable_parameters(net)
    sizes = {name: parameter.numel() for name, parameter in parameters.items() if not is_bias(name)}
    counts = dict(zip(sizes, layer_counts([*sizes.values()], pruned, config.arch, config.sr_version)))
    last = [*sizes][-1]
    kept = f"the classifier keeps {counts[last] / sizes[last]:.1%}, and the count of every layer is rounded down"
    counts |= {name: floor_count(1.0 - pruned, p.numel()) for name, p in parameters.items() if is_bias(name)}
    masks = random_masks(parameters, counts, run.rng("search", "masks"))
    return Ticket(plain_state(net), masks, facts={"density_reason": kept})


def layer_counts(sizes: Sequence[int], pruned: float, arch: str, version: int = 1) -> list[int]:
    """The number of weights to keep in each layer.

    Args:
        sizes: number of weights of each layer in network order, the classifier last.
        pruned: the fraction of all weights to prune, in [0, 1).
        arch: network name; for VGG the ratios fall faster.
        version: 2 sets the ratios of the first layer and the classifier (ResNet-20 at two densities only).

    Returns:
        The counts in the same order, each rounded down.

    Raises:
        UserError: version 2 for another network or density; the classifier's share exceeds the weights to keep; or
            there is no other layer.
    """
    layers = len(sizes)
    if layers < 2:
        raise UserError("smart_ratio treats the classifier apart: the network needs a prunable layer before it")
    wanted = (1.0 - pruned) * sum(sizes)
    is_vgg = "vgg" in arch.rpartition(":")[2].lower()  # not in the path of a user's file
    shapes = []
    for l in range(1, layers):  # noqa: E741 (the paper's letter)
        depth = layers - l + 1
        shapes.append((depth**2 + depth) / (l**2 if is_vgg else 1))
    a = (wanted - CLASSIFIER_RATIO * sizes[-1]) / sum(shape * size for shape, size in zip(shapes, sizes))
    if a < 0:
        raise UserError(
            f"smart_ratio: {wanted:.0f} weights are fewer than the classifier's share of {CLASSIFIER_RATIO}"
        )
    ratios = [a * shape for shape in shapes] + [CLASSIFIER_RATIO]
    if version == 2:
        if arch != "resnet20" or pruned not in SECOND_VERSION:
            known = ", ".join(map(str, SECOND_VERSION))
            raise UserError(f"sr_version 2 is defined for resnet20 with smart_ratio {known} only")
        ratios[0], ratios[-1] = SECOND_VERSION[pruned]  # as published, a is not solved for again
    return _without_surplus(ratios, sizes)


def _without_surplus(ratios: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """⌊ratio · n⌋ of each layer; the surplus of a ratio above 1 moves to the next layers, never to the classifier."""
    counts, surplus = [], 0
    for ratio, size in zip(ratios[:-1], sizes[:-1]):
        if ratio >= 1.0:
            counts.append(size)
            surplus += floor_count(ratio - 1.0, size)
        elif (room := floor_count(1.0 - ratio, size)) < surplus:
            counts.append(size)
            surplus -= room
        else:
            counts.append(floor_count(ratio, size) + surplus)
            surplus = 0
    return [*counts, floor_count(ratios[-1], sizes[-1])]
