"""Verdicts on sanity checks: a paired test over trials.

Paired, because a trial's control network is made of its ticket and sees the same split of the data: what a trial does
to both cancels in their difference. Over n differences with mean m and standard deviation s, the interval is
m ± t · s / √n, t being the 97.5% quantile of Student's distribution with n − 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student_t

TRIALS_NEEDED = 3
# Percentage points: above what rounding changes in a difference, below what one image changes.
ROUNDING = 1e-9


class Verdict(NamedTuple):
    """The outcome of a sanity check over trials.

    Attributes:
        trials: number of pairs of accuracies compared.
        margin: mean of (ticket − check), in percentage points.
        low, high: its 95% confidence interval by the paired t-test; None with fewer than 2 differences that differ.
        passes: whether the interval lies above 0; None (undecided) with fewer than 3 trials, or if all differences are
            equal, as those of copies of a trial: without a spread they say nothing about the next trial.

    Source: Frankle et al., ICLR 2021 (arXiv 2009.08576) for the comparison.
    """

    trials: int
    margin: float
    low: float | None
    high: float | None
    passes: bool | None

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        if self.passes is None:
            return "undecided: equal differences" if self.trials > 1 and self.low is None else "undecided"
        return "passes" if self.passes else "fails"

    def __str__(self) -> str:
        if self.passes is None:
            n = f"{self.trials} of {TRIALS_NEEDED} trials" if self.trials < TRIALS_NEEDED else f"n = {self.trials}"
            return f"{self.word} ({n})"
        return f"{self.word} (95% interval {self.low:+.2f} to {self.high:+.2f}, n = {self.trials})"


def judge(ticket: Sequence[float], check: Sequence[float]) -> Verdict:
    """Compare the accuracies of tickets and of their controls, trial by trial.

    Args:
        ticket: accuracy of each trial's trained ticket, in percent; at least one.
        check: accuracy of the control network of the same trial, in percent.

    Raises:
        ValueError: the two differ in length.
    """
    differences = [kept - checked for kept, checked in zip(ticket, check, strict=True)]
    trials, margin = len(differences), fmean(differences)
    if max(differences) - min(differences) < ROUNDING:
        return Verdict(trials, margin, None, None, None)
    half = float(student_t.ppf(0.975, trials - 1)) * stdev(differences) / math.sqrt(trials)
    passes = margin - half > 0 if trials >= TRIALS_NEEDED else None
    return Verdict(trials, margin, margin - half, margin + half, passes)
