"""Words the problems with options: what is wrong with a value, and the line or flag that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from utils.errors import abbreviate, nearest


def corrected(where: str, name: str, value: Any) -> str:
    """Suggest the corrected YAML line, flag or keyword argument, in the form that `where` uses."""
    if where.startswith("-"):
        return f"; did you mean '--{name}{'' if value is None else f' {value}'}'?"
    if where.endswith("="):
        return f"; did you mean {name}={value!r}?"
    try:
        written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).partition("\n")[0]
    except ValueError:  # Python refuses to write out a number this long
        written = abbreviate(value)
    return f"; did you mean '{name}: {abbreviate(written)}'?"


_OTHER_NAMES = {
    "learning_rate": "lr", "model": "arch", "network": "arch", "method": "algo", "trials": "num_trial",
    **dict.fromkeys(("data_path", "data_root", "data_folder"), "data"),
}  # fmt: skip
"""What other tools call an option -> its name here. It is not always the name nearest in letters."""

_OTHER_MEANINGS = {
    **dict.fromkeys(("density", "sparsity"), "target_sparsity, the percentage of weights that remain"),
    "sanity_checks": "skip_sanity_checks, its opposite",
    **{name: f"device, as in device: {name}" for name in ("cpu", "cuda")},
    **dict.fromkeys(("gpus", "num_gpus"), "gpu, the number of one GPU; several share a run that torchrun starts"),
    **dict.fromkeys(("fine_tune", "finetune"), "skip_fine_tune, its opposite"),
}
"""The same, where the value would have to change too."""


def no_such_option(where: str, name: str, value: Any, known: Iterable[str]) -> str:
    """Word the problem that an option does not exist, with the one that was probably meant."""
    said = f"{where}: no such option"
    if name in _OTHER_MEANINGS:
        return f"{said}; there is {_OTHER_MEANINGS[name]}"
    near = _OTHER_NAMES.get(name) or nearest(name, known)
    return said if near is None else said + corrected(where, near, value)


# Pydantic's type of error -> its message, of the value (abbreviated) and pydantic's context, such as the bound.
_COMPLAINTS = {
    "int_parsing": "'{given}' is not a whole number",
    "int_from_float": "{given} is not a whole number",
    "int_type": "{given} is not a whole number",
    "float_parsing": "'{given}' is not a number",
    "float_type": "{given} is not a number",
    "finite_number": "{given} is not a finite number",
    "bool_parsing": "'{given}' is neither true nor false",
    "bool_type": "{given} is neither true nor false",
    "string_type": "{given} is not a text",
    "greater_than": "{given} is too small: it has to be above {gt:g}",
    "greater_than_equal": "{given} is too small: it has to be at least {ge:g}",
    "less_than": "{given} is too large: it has to be below {lt:g}",
    "less_than_equal": "{given} is too large: it may be at most {le:g}",
    "too_short": "needs at least {min_length}",
    "list_type": "{given} is not a list",
    "literal_error": "{given} is not one of {expected}",
    "value_error": "{error}",
}


def complaint(error: Mapping[str, Any]) -> str:
    """Reword a pydantic error for this tool's messages."""
    text = _COMPLAINTS.get(error["type"])
    return text.format(given=abbreviate(error["input"]), **error.get("ctx", {})) if text else error["msg"]
