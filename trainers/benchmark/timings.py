"""What both benchmarks share: the median and range of what was timed, and how many times the user wants it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> list[float]:
    """Return the median, the lowest and the highest of some values."""
    return [median(values), min(values), max(values)]


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the `spread` of each value over the other side's of the same turn."""
    return spread([value / other for value, other in zip(values, others)])


def written(values: Sequence[float], digits: int) -> str:
    """Format a `spread` as median (lowest–highest)."""
    middle, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


def at_least(least: int, given: str) -> int:
    """Read a whole number of the command line.

    Raises:
        argparse.ArgumentTypeError: it is none, or is below `least`.
    """
    if not given.isdecimal() or int(given) < least:
        raise argparse.ArgumentTypeError(f"'{given}' is not a whole number of at least {least}")
    return int(given)
