"""`lmbda: auto`: the strength of Gem-Miner's L2 penalty, from the length and the learning rates of the search.

λ decides when the penalty has switched most weights off. The weight decay 2λ that it amounts to multiplies a score
that no gradient holds by 1 − 2λη/(1 − m) in each step, η being the learning rate and m the momentum. Scores begin in
[0, 1] and count as 1 above 0.5, so halving them switches off all that no gradient holds. `auto` is the λ that halves
them within the first quarter of the search. As far as no gradient holds more scores, what is left is then searched at
the target density, while learning rates are still high; the prunings take the rest. Too strong a penalty does no harm:
`GemMiner` lowers its threshold rather than switch on fewer weights than the target asks for.
"""

from __future__ import annotations

import math

from args_helper import Config
from trainers.tickets.recipe import Recipe

ARRIVAL = 0.25
"""Fraction of the epochs within which scores halve."""


def auto_lambda(config: Config, steps: int) -> float:
    """Return λ = ln 2 · (1 − m) / (2 Ση), over the steps of the first quarter of the search.

    With Adam, whose decay is then decoupled from its moments (AdamW), m is 0.

    Args:
        config: `epochs`, `start_epoch`, and the optimizer and learning rates of the search.
        steps: of an epoch.
    """
    recipe = Recipe.of_search(config)
    first, epochs = config.start_epoch, config.epochs - config.start_epoch
    rates = [recipe.rate(first + epoch) for epoch in range(max(1, round(ARRIVAL * epochs)))]
    momentum = config.momentum if config.optimizer == "sgd" else 0.0
    return math.log(2.0) * (1.0 - momentum) / (2.0 * steps * sum(rates))
