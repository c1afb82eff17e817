"""Rules about options that contradict one another although each is allowed by itself.

The rules stand in `args_helper.CONTRADICTIONS` and, for those of one algorithm, in the algorithm's row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Contradiction(NamedTuple):
    """A combination of options that cannot be used.

    Attributes:
        options: the options concerned; the message names where each was given.
        holds: config -> whether the config has this combination.
        text: the complaint; `{c.NAME}` stands for an attribute of the config.
    """

    options: tuple[str, ...]
    holds: Callable[[Any], object]
    text: str
