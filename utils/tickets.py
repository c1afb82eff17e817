"""Tickets as files: `state/NAME`, `mask/NAME` and, where there is one, `gem/NAME`; the recipe is in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import UserError, shown
from utils.files import write_atomic
from utils.masks import Ticket
from utils.recipe import Recipe

_MAPPING = TypeAdapter(dict[str, Any])


def write_ticket(path: Path, ticket: Ticket, about: Mapping[str, Any]) -> None:
    """Write a ticket, whole; masks as 0 and 1.

    Args:
        path: a `.safetensors` file.
        ticket: what to write.
        about: JSON values for the header.
    """
    parts: dict[str, Tensor] = {f"state/{name}": value for name, value in ticket.state.items()}
    for kind, masks in (("mask", ticket.masks), ("gem", ticket.gem or {})):
        parts |= {f"{kind}/{name}": mask.to(torch.uint8) for name, mask in masks.items()}
    content = {name: value.detach().cpu().contiguous().clone() for name, value in parts.items()}
    recipe = asdict(ticket.recipe) if ticket.recipe else None
    # A file's tensors come in an order of its own; twins are drawn in the order of the masks.
    said = {"order": list(parts), "about": dict(about), "facts": dict(ticket.facts), "recipe": recipe}
    header = {name: json.dumps(value) for name, value in said.items()}
    write_atomic(path, save(content, header))


def read_ticket(path: Path) -> tuple[Ticket, dict[str, Any]]:
    """A ticket as `write_ticket` wrote it, on the CPU, and what was written about it.

    Raises:
        UserError: no such file, or no ticket in it.
    """
    if not path.is_file():
        raise UserError(f"there is no ticket {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            names = json.loads(header.get("order", "null")) or file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        about, facts, recipe = (json.loads(header.get(name, "null")) or {} for name in ("about", "facts", "recipe"))
        about, facts = _MAPPING.validate_python(about), _MAPPING.validate_python(facts)
        recipe = TypeAdapter(Recipe).validate_python(recipe) if recipe else None
    except (OSError, SafetensorError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise UserError(f"{path} is not a ticket, or is damaged: {shown(str(error))}") from error
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "mask": {}, "gem": {}}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition("/")
        if kind in parts:
            parts[kind][parameter] = tensor if kind == "state" else tensor.bool()
    if not parts["state"] or not parts["mask"]:
        raise UserError(f"{path} is not a ticket: it has no state/... and mask/... in it")
    return Ticket(parts["state"], parts["mask"], parts["gem"] or None, facts, recipe), about


def is_ticket_file(path: Path) -> bool:
    """Whether a file is one of `write_ticket`'s."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return any(name.startswith("mask/") for name in file.keys())
    except (OSError, SafetensorError):
        return False
