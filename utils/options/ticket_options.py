"""Reads the options that a ticket file stores, without the tensors."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from utils.files import safetensors_header


def stored_options(path: str | Path, names: Collection[str]) -> dict[str, Any]:
    """Return the options of these names in a ticket file, unvalidated; none if it is no ticket, or an old one.

    A ticket from someone else must not choose which code runs, so a value that names a `.py` file is ignored.

    Args:
        path: the file; it need not exist.
        names: options that may be read.
    """
    try:
        told = json.loads(safetensors_header(Path(path)).get("about", "{}"))["options"]
        return {name: told[name] for name in names if name in told and ".py:" not in str(told[name])}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
