"""Compares the options of two experiments: on resuming, in refusals of a folder, and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return option -> "old → new" for every option whose values differ, in the order of the options."""
    return {name: f"{old.get(name)} → {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)}


def written(changed: Mapping[str, str], separator: str = ", ") -> str:
    """Write changes in one line."""
    return separator.join(f"{name} {values}" for name, values in changed.items())
