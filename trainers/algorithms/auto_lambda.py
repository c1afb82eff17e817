"""`lmbda: auto`: the strength of Gem-Miner's L2 penalty, steered so that the search reaches its target early.

A score is above 0.5 where its mean gradient pulls it up by more than λ, so a larger λ leaves fewer weights switched on.
Which λ leaves those of the target is not known ahead: it depends on the network, the data and the length of the search.
`AutoLambda` begins with the λ that halves, by the time at which the target should be reached, a score that no gradient
holds (the weight decay 2λ multiplies it by 1 − 2λη/(1 − m) in each step, η being the learning rate and m the momentum).
After every epoch it compares the density above 0.5 with the one that such scores would have: from then on, the target.
It multiplies λ by a power of their ratio, but never makes it smaller than it was at first.

The rest of the search then takes place at the target density, while learning rates are still high. However strong the
penalty, `GemMiner` lowers its threshold rather than switch on fewer weights than the target asks for; but the search
chooses them less well.
"""

from __future__ import annotations

import math

from args_helper import Config
from trainers.tickets.recipe import Recipe

ARRIVAL, LATEST_ARRIVAL = 0.1, 0.5
"""Fraction of the epochs after which the density should be the target, and the latest in a search of few steps."""
FEWEST_STEPS = 200
"""Steps before the arrival, if `LATEST_ARRIVAL` leaves as many: after fewer, scores rank noise."""
GAIN = 0.15
"""Power of the ratio of the densities, chosen in the model of scores under constant gradients that
`tests/test_auto_lambda.py` has: with a smaller one a short search comes late, with 0.3 λ swings in a long one."""
LARGEST_RATIO = 10.0


class AutoLambda:
    """The law by which the λ of a search begins, and changes between epochs; `GemMiner` holds λ itself.

    With Adam, whose decay is then decoupled from its moments (AdamW), m is 0.

    Args:
        config: `epochs`, `start_epoch`, the target, and the optimizer and learning rates of the search.
        steps: of an epoch.

    Attributes:
        first: λ before the first epoch, ln 2 · (1 − m) / (2 Ση) over the steps before the arrival, at most critical.
    """

    def __init__(self, config: Config, steps: int) -> None:
        self._rate, self._start, self._target = Recipe.of_search(config).rate, config.start_epoch, config.density
        length = config.epochs - self._start
        arrival = min(max(ARRIVAL * length, FEWEST_STEPS / steps), LATEST_ARRIVAL * length)
        self._rates = [self._rate(self._start + epoch) for epoch in range(max(1, round(arrival)))]
        self._momentum = config.momentum if config.optimizer == "sgd" else 0.0
        halving = math.log(2.0) * (1.0 - self._momentum) / (2.0 * steps * sum(self._rates))
        self.first = min(halving, self._critical(max(self._rates)))

    def expected_density(self, epoch: int) -> float:
        """Return the density above 0.5, at the end of an epoch, of scores that began uniform and that nothing holds.

        It falls from 1/2 to the target d: max(d, 1 − 2^(x − 1)), x being the part of the Ση before the arrival
        that has passed, at most 1.
        """
        passed = sum(self._rates[: epoch - self._start + 1]) / sum(self._rates)
        return max(self._target, 1.0 - 2.0 ** (passed - 1.0))

    def _critical(self, rate: float) -> float:
        """Return (1 − √m)² / 2η: above it, momentum would carry scores past 0, and clamped at 0 they no longer rank."""
        return (1.0 - math.sqrt(self._momentum)) ** 2 / (2.0 * rate)

    def steered(self, lmbda: float, epoch: int, density: float) -> float:
        """Return λ · (density / expected)^`GAIN`, not below `first`, and not above the critical (1 − √m)² / 2η.

        Below `first` the ranks of scores would go stale: nothing would pull at those that no gradient holds any more.

        Args:
            lmbda: λ in the epoch.
            epoch: that has just ended.
            density: the fraction of all weights that are unpruned with scores above 0.5.
        """
        ratio = density / self.expected_density(epoch)
        lmbda *= min(max(ratio, 1.0 / LARGEST_RATIO), LARGEST_RATIO) ** GAIN
        return max(min(lmbda, self._critical(self._rate(epoch))), self.first)
