"""Parses the headers of ticket files, and reads ticket files in their first format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket


def parse_header(header: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any], Recipe | None, dict[str, Any]]:
    """Parse `about`, `facts`, `recipe` and `draw` from the header of a ticket file, in this or the second format.

    Returns:
        The four in this order; empty, or None for the recipe, where the header has none.

    Raises:
        ValueError, TypeError, KeyError: one of them has an unknown form.
    """
    found = {name: json.loads(header.get(name, "null")) or {} for name in ("about", "facts", "recipe", "draw")}
    if not all(isinstance(value, dict) for value in found.values()):
        raise ValueError("what is said about it is in no known form")
    try:
        recipe = TypeAdapter(Recipe).validate_python(found["recipe"]) if found["recipe"] else None
    except ValidationError as error:
        raise ValueError("the way it was trained is in no known form") from error
    return found["about"], found["facts"], recipe, found["draw"]


def read_first_format(header: Mapping[str, str], parts: Mapping[str, Tensor]) -> tuple[Ticket, dict[str, Any]]:
    """Read a ticket and its `about` from the first format, whose `mask/NAME` and `gem/NAME` are 0 and 1.

    Args:
        header: the file's metadata; its `order` lists the parts in the state_dict's order, which the file loses.
        parts: `state/NAME`, `mask/NAME` and `gem/NAME` -> tensors of the parameter's shape.

    Raises:
        ValueError, TypeError, KeyError: it is not a ticket.
    """
    about, facts, recipe, _ = parse_header(header)
    found: dict[str, dict[str, Tensor]] = {"state": {}, "mask": {}, "gem": {}}
    for name in json.loads(header.get("order", "null")) or parts:
        kind, _, parameter = name.partition("/")
        if kind in found:
            found[kind][parameter] = parts[name] if kind == "state" else parts[name].bool()
    state, masks, gem = found.values()
    if not state or not masks:
        raise ValueError("it has no state/... and mask/... in it")
    for name, mask in (*masks.items(), *gem.items()):
        if name not in state or state[name].shape != mask.shape:
            raise ValueError(f"the mask of {name} is not of its shape")
    if gem and set(gem) != set(masks):
        raise ValueError("its gem and its masks are of different layers")
    return Ticket(state, masks, gem or None, facts, recipe), about
