"""The modes of the tool that are no run of an experiment; one command has one of them."""

from __future__ import annotations

from utils.options.contradictions import Contradiction

MODES = (
    "dry_run", "list", "report", "evaluate", "compare_rounding", "mode_connect", "compare_tickets", "pack",
    "check_data", "only_sanity",
)  # fmt: skip
"""Options by which the tool does something else than to run new trials."""

ONE_MODE = Contradiction(
    MODES,
    lambda c: sum(bool(getattr(c, name)) for name in MODES) > 1,
    "each of these says what to do: give one of them",
)
