"""The modes in which the tool does more or other than to run trials; a command has one of them at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.options.contradictions import Contradiction

LOOKING = ("list", "report", "evaluate", "compare_rounding", "mode_connect", "compare_tickets", "pack", "check_data")
"""Modes that search nothing, so that no algorithm's options matter to them."""

MODES = (*LOOKING, "dry_run", "only_sanity", "export")

ONE_MODE = Contradiction(
    MODES,
    lambda c: sum(bool(getattr(c, name)) for name in MODES) > 1,
    "each of these says what to do: give one of them",
)


def overridden(from_file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a file with the flags on top; a mode among the flags takes the place of the file's.

    So the `config.yml` of a run that was exported can be evaluated.
    """
    chosen = any(name in flags and flags[name].value is not False for name in MODES)
    return {**{name: given for name, given in from_file.items() if not (chosen and name in MODES)}, **flags}
