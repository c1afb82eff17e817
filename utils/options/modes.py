"""The modes in which the tool does more or other than to run trials; a command has one of them at most."""

from __future__ import annotations

from utils.options.contradictions import Contradiction

LOOKING = ("list", "report", "evaluate", "compare_rounding", "mode_connect", "compare_tickets", "pack", "check_data")
"""Modes that search nothing, so that no algorithm's options matter to them."""

MODES = (*LOOKING, "dry_run", "only_sanity", "export")

ONE_MODE = Contradiction(
    MODES,
    lambda c: sum(bool(getattr(c, name)) for name in MODES) > 1,
    "each of these says what to do: give one of them",
)
