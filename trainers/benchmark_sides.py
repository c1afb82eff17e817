"""The two sides of `trainers.benchmark`, on the same weights: a search as it is run here, and the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.loader import Splits
from models import build_model
from models.folding import FoldedNetwork
from models.initialise import draw_scores
from models.masking import masked_layers, plain_state, prunable_parameters, to_masked
from trainers import plain_loop
from trainers.algorithms.hypercube import GemMiner
from trainers.compiling import prepared
from trainers.loop import evaluate, most_parts, train_step
from trainers.weights import WeightTraining
from utils.masks import Ticket, random_masks
from utils.recipe import Recipe

if TYPE_CHECKING:
    from args_helper import Config

Call = Callable[[], Any]


class Sides:
    """The same search twice: ours, and written plainly.

    Args:
        config: resolved.
        data: whole sets in memory.
        dtype: of weights and scores.
    """

    def __init__(self, config: Config, data: Splits, dtype: torch.dtype = torch.float32) -> None:
        self.data = data
        net = build_model(config, data.spec).to(config.torch_device, dtype)
        self.dense, plain = deepcopy(net), deepcopy(net)
        to_masked(net)
        draw_scores(net, torch.Generator().manual_seed(0), config.score_init)
        scores = {name: layer.scores.detach().clone() for name, layer in masked_layers(net).items()}
        self.config = prepared(config, net, data)
        self.ours = GemMiner(net.train(), self.config)
        self.ours.full_batch = most_parts(config.batch_size, self.ours.accumulate)
        self.layers = plain_loop.plainly_masked(plain, scores)
        self.plain = plain.to(config.torch_device).train()
        learned = [layer.scores for layer in self.layers]
        self.optimizer = torch.optim.SGD(learned, config.lr, config.momentum, weight_decay=config.wd)

    def our_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """A step of the search; the loss of the task, left on the device."""
        return train_step(self.ours, 0, images, labels)[0] / len(labels)

    def plain_step(self, images: Tensor, labels: Tensor) -> float:
        """A step of the search; the loss of the task."""
        step = (self.plain, self.layers, self.optimizer, self.config.lmbda)
        return plain_loop.search_step(*step, (images, labels))

    def our_pruning(self) -> Tensor:
        """The flags after a pruning, which is then taken back."""
        self.ours._prune(last=False, generator=torch.Generator())
        flags = self.ours.flat.flags.clone()
        self.ours.flat.flags.fill_(True)
        return flags

    def plain_pruning(self) -> Tensor:
        """The flags after a pruning, which is then taken back."""
        plain_loop.prune(self.layers, self.config.prune_rate)
        flags = torch.cat([layer.flag.detach().flatten() for layer in self.layers]).bool()
        for layer in self.layers:
            layer.flag.data = torch.ones_like(layer.flag)
        return flags

    def our_epoch(self) -> None:
        """An epoch of the search with its evaluation."""
        for images, labels in self.data.train.epoch(torch.Generator().manual_seed(1)):
            self.our_step(images, labels)
        self.ours.after_steps()
        self.our_measurement()

    def plain_epoch(self) -> None:
        """The same; with rounding in the forward pass, before and after it are the same network, evaluated twice."""
        for images, labels in self.plain_batches():
            self.plain_step(images, labels)
        self.plain_measurement()

    def our_measurement(self) -> None:
        """What a search evaluates at the end of an epoch: once, where before and after rounding are the same bits."""
        self.ours.measure(self.data, lambda stream: torch.Generator())

    def plain_measurement(self) -> None:
        """The same, before and after rounding."""
        for _ in ("before rounding", "after rounding"):
            self.plain_evaluation()

    def plain_evaluation(self) -> float:
        """One pass over the test images."""
        images = plain_loop.batches(self.data.test.images, self.data.spec, self.config.batch_size, augmented=False)
        return plain_loop.accuracy(self.plain, images)

    def plain_batches(self) -> Iterator[Any]:
        """An epoch of training batches."""
        return plain_loop.batches(self.data.train.images, self.data.spec, self.config.batch_size, augmented=True)


def parts(sides: Sides) -> dict[str, tuple[Call, Call, int]]:
    """Part -> ours, the plain one, and the images that one call of either goes through (0: none)."""
    data, batch_size = sides.data, sides.config.batch_size
    batch = next(data.train.epoch(torch.Generator().manual_seed(0)))
    plain_batch = (batch[0].contiguous(), batch[1])
    our_tuning, plain_tuning = _tuning_steps(sides, batch, plain_batch)
    ours = endless(lambda seed: data.train.epoch(torch.Generator().manual_seed(seed)))
    plain = endless(lambda _: sides.plain_batches())
    folded = FoldedNetwork(deepcopy(sides.dense))
    return {
        "search step": (lambda: sides.our_step(*batch), lambda: sides.plain_step(*plain_batch), batch_size),
        "fine-tune step": (our_tuning, plain_tuning, batch_size),
        "data batch": (lambda: next(ours), lambda: next(plain), batch_size),
        "pruning": (sides.our_pruning, sides.plain_pruning, 0),
        "evaluation pass": (
            lambda: evaluate(folded.refreshed(), data.test), sides.plain_evaluation, len(data.test)
        ),
        "evaluation of an epoch": (sides.our_measurement, sides.plain_measurement, len(data.test)),
        "search epoch": (sides.our_epoch, sides.plain_epoch, len(data.train.images)),
    }  # fmt: skip


def endless(epoch: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """The batches of one epoch after another, each begun by its number."""
    seed = 0
    while True:
        yield from epoch(seed := seed + 1)


def _tuning_steps(sides: Sides, batch: Any, plain_batch: Any) -> tuple[Call, Call]:
    net, plain, recipe = deepcopy(sides.dense), deepcopy(sides.dense).train(), Recipe.of_tuning(sides.config)
    counts = {name: weight.numel() // 20 for name, weight in prunable_parameters(net).items()}
    masks = random_masks(prunable_parameters(net), counts, torch.Generator().manual_seed(0))
    prepared(sides.config, net, sides.data)
    training = WeightTraining(net.train(), Ticket(plain_state(net), masks), recipe)
    training.full_batch = most_parts(sides.config.batch_size, training.accumulate)
    optimizer = torch.optim.SGD(plain.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.wd)
    factors = {name: mask.float() for name, mask in masks.items()}
    return (
        lambda: train_step(training, 0, *batch),
        lambda: plain_loop.tuning_step(plain, factors, optimizer, plain_batch),
    )
