"""The sides of `trainers.benchmark`, with the same weights and scores: this project's search, and the plain loop.

Both have one method for every timed part (`PARTS`). A method prepares nothing, as all of it is timed; `measure` waits
for the device before and after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain, count

import torch
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from data.normalise import Batch
from models.build import build_model
from models.folding import FoldedNetwork
from models.initialise import draw_scores
from models.masking import masked_layers, plain_state, prunable_parameters, to_masked
from trainers.algorithms.gem_miner import GemMiner
from trainers.benchmark import plain_loop
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.compile import allow_tf32, prepared
from trainers.training.loop import evaluate, most_parts, train_step
from trainers.training.weights import WeightTraining
from utils.errors import UserError
from utils.masks import Masks, random_masks
from utils.memory import keep_freed_memory

PARTS = {
    "search step": "search_step",
    "fine-tune step": "tuning_step",
    "data batch": "data_batch",
    "pruning": "pruning",
    "evaluation pass": "evaluation",
    "evaluation of an epoch": "measurement",
    "search epoch": "search_epoch",
    "fine-tune epoch": "tuning_epoch",
}
"""Part -> the method of both sides that runs it."""

TUNED_DENSITY = 0.05


class Start:
    """The weights, scores and masks that both sides start from.

    Args:
        config: resolved.
        data: whole data sets in memory.
        dtype: of weights and scores.

    Attributes:
        dense: the plain network.
        masked: the same network with masks and scores.
        masks: of the ticket to fine-tune, TUNED_DENSITY of every layer.
    """

    def __init__(self, config: Config, data: Splits, dtype: torch.dtype = torch.float32) -> None:
        self.dense = build_model(config, data.spec).to(config.torch_device, dtype).train()
        self.masked = to_masked(deepcopy(self.dense))
        draw_scores(self.masked, torch.Generator().manual_seed(0), config.score_init)
        weights = prunable_parameters(self.dense)
        counts = {name: max(1, int(TUNED_DENSITY * weight.numel())) for name, weight in weights.items()}
        self.masks: Masks = random_masks(weights, counts, torch.Generator().manual_seed(0))


class OurSide:
    """This project's search and fine-tuning, in the precision of the config."""

    def __init__(self, start: Start, config: Config, data: Splits) -> None:
        self.data, net = data, deepcopy(start.masked)
        self.config = prepared(config, net, data)
        self.search = GemMiner(net, self.config)
        tuned = deepcopy(start.dense)
        prepared(self.config, tuned, data)
        self._tuning = WeightTraining(tuned, Ticket(plain_state(tuned), start.masks), Recipe.of_tuning(config))
        self.search.full_batch = self._tuning.full_batch = most_parts(config.batch_size, config.accumulate)
        self._folded = FoldedNetwork(deepcopy(start.dense))
        epochs = (data.train.epoch(torch.Generator().manual_seed(seed)) for seed in count(1))
        self._batches = chain.from_iterable(epochs)
        self._batch = next(self._batches)

    def prepare_process(self) -> None:
        """Apply the settings of the process that this side has; call this before a part is timed."""
        allow_tf32(self.config.precision)
        keep_freed_memory()

    def search_step(self, batch: Batch | None = None) -> Tensor:
        """Take a search step; return the loss of the task, left on the device."""
        images, labels = batch or self._batch
        return train_step(self.search, 0, images, labels)[0] / len(labels)

    def tuning_step(self, batch: Batch | None = None) -> None:
        """Take a fine-tuning step."""
        train_step(self._tuning, 0, *(batch or self._batch))

    def data_batch(self) -> Batch:
        """Return the next batch of training images."""
        return next(self._batches)

    def pruning(self) -> Tensor:
        """Prune, return the resulting flags, and undo the pruning."""
        self.search._prune(last=False, generator=torch.Generator())
        flags = self.search.flat.flags.clone()
        self.search.flat.flags.fill_(True)
        return flags

    def evaluation(self) -> None:
        """Evaluate the test images once."""
        evaluate(self._folded.refreshed(), self.data.test, self.config.precision)

    def measurement(self) -> None:
        """Evaluate as a search does after an epoch: once, if the network is the same before and after rounding."""
        self.search.measure(self.data, lambda stream: torch.Generator())

    def search_epoch(self) -> None:
        """Run an epoch of the search with its evaluation."""
        for batch in self.data.train.epoch(torch.Generator().manual_seed(1)):
            self.search_step(batch)
        self.search.after_steps()
        self.measurement()

    def tuning_epoch(self) -> None:
        """Run an epoch of fine-tuning, and evaluate the test images once."""
        for batch in self.data.train.epoch(torch.Generator().manual_seed(1)):
            self.tuning_step(batch)
        self.evaluation()


class PlainSide:
    """The same in the plain loop, always in single precision, or in the double precision of `start`."""

    def __init__(self, start: Start, config: Config, data: Splits) -> None:
        self.data, self.config = data, config
        scores = {name: layer.scores.detach() for name, layer in masked_layers(start.masked).items()}
        others = [name for name in scores if not isinstance(start.dense.get_submodule(name), nn.Conv2d)]
        if others:
            raise UserError(f"--arch {config.arch}: the plain loop masks convolutions only, and {others[0]} is none")
        self._net = deepcopy(start.dense)
        self._layers = plain_loop.plainly_masked(self._net, scores)
        learned = [layer.scores for layer in self._layers]
        self._optimizer = torch.optim.SGD(learned, config.lr, config.momentum, weight_decay=config.wd)
        self._tuned, recipe = deepcopy(start.dense), Recipe.of_tuning(config)
        self._factors = {name: mask.float() for name, mask in start.masks.items()}
        self._tuner = torch.optim.SGD(self._tuned.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.wd)
        self._batches = chain.from_iterable(self._epoch() for _ in count())
        images, labels = next(data.train.epoch(torch.Generator().manual_seed(1)))
        self._batch = images.contiguous(), labels

    def prepare_process(self) -> None:
        """Compute products in single precision, and let the C library do as it usually does."""
        allow_tf32("fp32")
        keep_freed_memory(False)

    def search_step(self, batch: Batch | None = None) -> float:
        """Take a search step; return the loss of the task."""
        step = (self._net, self._layers, self._optimizer, self.config.lmbda)
        return plain_loop.search_step(*step, batch or self._batch)

    def tuning_step(self, batch: Batch | None = None) -> None:
        """Take a fine-tuning step."""
        plain_loop.tuning_step(self._tuned, self._factors, self._tuner, batch or self._batch)

    def data_batch(self) -> Batch:
        """Return the next batch of training images."""
        return next(self._batches)

    def pruning(self) -> Tensor:
        """Prune, return the resulting flags, and undo the pruning."""
        plain_loop.prune(self._layers, self.config.pruning_rate)
        flags = torch.cat([layer.flag.detach().flatten() for layer in self._layers]).bool()
        for layer in self._layers:
            layer.flag.data = torch.ones_like(layer.flag)
        return flags

    def evaluation(self) -> None:
        """Evaluate the test images once."""
        images = plain_loop.batches(self.data.test.images, self.data.spec, self.config.batch_size, augmented=False)
        plain_loop.accuracy(self._net, images)

    def measurement(self) -> None:
        """Evaluate the test images as after an epoch: before rounding, and after it."""
        self.evaluation()
        self.evaluation()

    def search_epoch(self) -> None:
        """Run an epoch of the search with its evaluation."""
        for batch in self._epoch():
            self.search_step(batch)
        self.measurement()

    def tuning_epoch(self) -> None:
        """Run an epoch of fine-tuning, and evaluate the test images once."""
        for batch in self._epoch():
            self.tuning_step(batch)
        self.evaluation()

    def _epoch(self) -> Iterator[Batch]:
        return plain_loop.batches(self.data.train.images, self.data.spec, self.config.batch_size, augmented=True)


def images_of(part: str, data: Splits) -> int:
    """Return how many images one call of a part (a key of `PARTS`) processes; 0: none."""
    if part == "pruning":
        return 0
    if part.startswith("evaluation"):
        return len(data.test)
    return len(data.train.images) if part.endswith("epoch") else data.train.size(0)
