"""What a search draws, and what the options make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainers.sweeping.plan import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import Trial


def suggested(trial: Trial, name: str, sought: SearchSpace) -> Any:
    """The value of an option in a trial of a study, drawn unless it was before.

    Args:
        trial: of the study.
        name: the option's.
        sought: where it is searched for.
    """
    if not sought.is_range:
        return as_written(trial.suggest_categorical(name, [_label(value) for value in sought.values]), sought)
    low, high = sought.values
    suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
    return as_written(suggest(name, low, high, log=sought.log), sought)


def as_written(drawn: Any, sought: SearchSpace) -> Any:
    """The option's value for what was drawn: numbers have three digits, as one would write them."""
    if not sought.is_range:
        return next(value for value in sought.values if _label(value) == drawn)
    if isinstance(drawn, int):
        return drawn
    low, high = sought.values
    return min(max(float(f"{drawn:.3g}"), low), high)


def _label(value: Any) -> Any:
    return value if isinstance(value, str | bool | int | float) else str(value)
