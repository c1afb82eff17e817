"""Draw values for a search, and convert them to values of the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainers.sweeping.plan import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import Trial


def suggested(trial: Trial, name: str, sought: SearchSpace) -> Any:
    """Return the value of an option in a trial of a study; draw it unless that was done before.

    Args:
        trial: of the study.
        name: of the option.
        sought: where to search for it.

    Returns:
        The value as the option holds it, after `as_written`.
    """
    if not sought.is_range:
        return as_written(trial.suggest_categorical(name, [label(value) for value in sought.values]), sought)
    low, high = sought.values
    suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
    return as_written(suggest(name, low, high, log=sought.log), sought)


def as_written(drawn: Any, sought: SearchSpace) -> Any:
    """Convert what was drawn to the option's value; numbers get three digits, as a person would write them.

    Args:
        drawn: as the study stores it: a number, or the `label` of a value.
        sought: where it was drawn from; rounding does not leave its bounds.
    """
    if not sought.is_range:
        return next(value for value in sought.values if label(value) == drawn)
    if isinstance(drawn, int):
        return drawn
    low, high = sought.values
    return min(max(float(f"{drawn:.3g}"), low), high)


def label(value: Any) -> Any:
    """Return what a study stores for a listed value: Optuna takes no lists."""
    return value if isinstance(value, str | bool | int | float) else str(value)
