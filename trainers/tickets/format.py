"""Ticket files: small `.safetensors` that any tool opens, that run no code, and whose damage is detected.

    mask         the masks of all layers, one after another, encoded by `trainers.tickets.mask_code`
    gem          if it differs from the masks: encoded likewise; if it is a subset, only the entries that the masks keep
    state/NAME   the weights of a masked layer, unless they can be redrawn
    others/TYPE  the rest of the state, mostly BatchNorm's statistics, one after another
    layout       the names, shapes and types of these parts, as deflated JSON

In the header, as JSON: `format`; `about`, `facts` and `recipe`; `draw`, from which the weights can be redrawn; and
`sha256`, over all the rest. A ticket keeps pruned weights too: control networks with permuted masks need them.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainers.tickets.first_format import parse_header, read_first_format
from trainers.tickets.mask_code import decoded, encoded, inflated
from trainers.tickets.ticket import Ticket
from utils.errors import UserError, abbreviate
from utils.files import digest_of, write_atomic
from utils.masks import Masks

KIND = "rare gems ticket "
FORMAT = f"{KIND}2"
_TYPES = {str(kind).removeprefix("torch."): kind for kind in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)}  # fmt: skip
# Limits on what a file may claim, in bytes and in entries, so that a damaged or hostile one cannot fill the memory.
_LONGEST_LAYOUT = 2**26
_MOST_ENTRIES = 2**31


@dataclass(frozen=True)
class Stored:
    """The content of a ticket file.

    Attributes:
        ticket: its state lacks the weights that have to be redrawn.
        about: JSON values about it.
        shapes: parameter or buffer -> its shape, for the whole state, in the state_dict's order.
        draw: as given to `write_stored`; None if the state is complete.
    """

    ticket: Ticket
    about: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    draw: dict[str, Any] | None = None

    def with_weights(self, drawn: Mapping[str, Tensor]) -> Ticket:
        """The complete ticket, its state in the state_dict's order.

        Args:
            drawn: parameter name -> tensor, for the weights that the file leaves out.
        """
        everything = {**self.ticket.state, **drawn}
        return replace(self.ticket, state={name: everything[name] for name in self.shapes})


# ---- writing -------------------------------------------------------------------------------------------------------


def write_stored(
    path: Path, ticket: Ticket, about: Mapping[str, Any], draw: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Write a ticket file atomically.

    Args:
        path: a `.safetensors` file.
        ticket: what to write.
        about: JSON values for the header.
        draw: JSON values from which a reader can redraw the weights named in its `names`; these are not stored.

    Returns:
        Sizes in bytes: `file`; its parts `mask`, `gem`, `weights`, `others` and `header` (all the rest); `dense`, the
        dense network's state_dict.
    """
    told = dict(draw or {})
    parts = _laid_out(ticket, told.pop("names", []))
    values = {"about": about, "facts": ticket.facts, "recipe": ticket.recipe and asdict(ticket.recipe), "draw": told}
    header = {"format": FORMAT, **{name: json.dumps(value) for name, value in values.items() if value}}
    content = save(parts, {**header, "sha256": _digest(header, parts)})
    write_atomic(path, content)
    sizes = dict.fromkeys(("mask", "gem", "weights", "others"), 0)
    for name, part in parts.items():
        kind = {"state": "weights"}.get(name.partition("/")[0], name.partition("/")[0])
        if kind in sizes:
            sizes[kind] += part.nbytes
    dense = sum(value.nbytes for value in ticket.state.values())
    return {"file": len(content), **sizes, "header": len(content) - sum(sizes.values()), "dense": dense}


def _laid_out(ticket: Ticket, drawn: list[str]) -> dict[str, Tensor]:
    """The tensors of the file, without the weights named in `drawn`."""
    state = {name: value.detach().cpu().contiguous() for name, value in ticket.state.items()}
    parts: dict[str, Tensor] = {f"state/{name}": state[name].clone() for name in ticket.masks if name not in drawn}
    others = [name for name in state if name not in drawn and name not in ticket.masks]
    for kind in sorted({_type(state[name]) for name in others}):
        parts[f"others/{kind}"] = torch.cat([state[name].flatten() for name in others if _type(state[name]) == kind])
    relation, gem_blob = _gem_of(ticket)
    layout = {
        "state": {name: [_type(value), list(value.shape)] for name, value in state.items()},
        "masks": list(ticket.masks),
        "gem": relation,
        "drawn": drawn,
    }
    packed = zlib.compress(json.dumps(layout, separators=(",", ":")).encode(), 9)
    blobs = {"mask": encoded(_flat(ticket.masks)), **gem_blob, "layout": packed}
    return {**parts, **{name: torch.frombuffer(bytearray(blob), dtype=torch.uint8) for name, blob in blobs.items()}}


def _gem_of(ticket: Ticket) -> tuple[str | None, dict[str, bytes]]:
    """How the gem relates to the masks, and its encoding if it differs from them."""
    if ticket.gem is None:
        return None, {}
    mask, gem = _flat(ticket.masks), _flat({name: ticket.gem[name] for name in ticket.masks})
    if np.array_equal(gem, mask):
        return "mask", {}
    if (gem & ~mask).any():
        return "whole", {"gem": encoded(gem)}
    return "among", {"gem": encoded(gem[mask])}


def _flat(masks: Masks) -> np.ndarray:
    return torch.cat([mask.detach().cpu().flatten() for mask in masks.values()]).numpy()


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(header: Mapping[str, str], parts: Mapping[str, Tensor]) -> str:
    """The SHA-256 over the header (without itself) and all parts; in sorted order, as a reader may get them in any."""
    names = sorted(parts)
    what = [sorted(header.items()), [[name, _type(parts[name]), list(parts[name].shape)] for name in names]]
    whole = hashlib.sha256(json.dumps(what).encode())
    whole.update(digest_of(parts[name] for name in names).encode())
    return whole.hexdigest()


# ---- reading -------------------------------------------------------------------------------------------------------


def read_stored(path: Path) -> Stored:
    """Read a ticket file that `write_stored` or an earlier version wrote, onto the CPU.

    Raises:
        UserError: the file does not exist, is no ticket, or is damaged.
    """
    require_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            parts = {name: file.get_tensor(name) for name in file.keys()}
        if not header.get("format", "").startswith(KIND):  # other tools write a format as well: "pt"
            ticket, about = read_first_format(header, parts)
            return Stored(ticket, about, {name: tuple(value.shape) for name, value in ticket.state.items()})
        if header["format"] != FORMAT:
            raise ValueError(f"its format is '{header['format'][:40]}', which this version does not know")
        if header.pop("sha256", None) != _digest(header, parts):
            raise ValueError("its checksum is another")
        return _unpacked(header, parts)
    except Exception as error:  # an untrusted file may cause any
        raise UserError(f"{path} is not a ticket, or is damaged: {abbreviate(str(error))}") from error


def require_file(path: Path) -> None:
    """Raises: UserError: it is no file; the message names the ticket in a run's folder."""
    if not path.is_file():
        inner = next(chain(path.glob("ticket.safetensors"), path.glob("trial_*/ticket.safetensors")), None)
        raise UserError(f"{path} is a folder; its ticket is {inner}" if inner else f"there is no ticket {path}")


def is_ticket_file(path: Path) -> bool:
    """Whether a file is a ticket that `write_stored` or an earlier version wrote."""
    try:
        with safe_open(str(path), framework="pt") as file:
            known = (file.metadata() or {}).get("format", "").startswith(KIND)
            return known or any(name.startswith("mask/") for name in file.keys())
    except (OSError, SafetensorError):
        return False


def _unpacked(header: Mapping[str, str], parts: Mapping[str, Tensor]) -> Stored:
    """Put the content together; any exception means that the file is damaged or no ticket."""
    about, facts, recipe, draw = parse_header(header)
    layout = json.loads(inflated(parts["layout"].numpy().tobytes(), _LONGEST_LAYOUT))
    shapes = {str(name): tuple(map(int, shape)) for name, (_, shape) in layout["state"].items()}
    kinds = {name: _TYPES[kind] for name, (kind, _) in layout["state"].items()}
    if (
        any(size < 0 for shape in shapes.values() for size in shape)
        or sum(map(math.prod, shapes.values())) > _MOST_ENTRIES
    ):
        raise ValueError("shapes that no network has")
    drawn = set(layout["drawn"])
    state: dict[str, Tensor] = {}
    for name in layout["masks"]:
        if name not in drawn:
            state[name] = _checked(parts[f"state/{name}"], kinds[name], shapes[name])
    rest = [name for name in shapes if name not in drawn and name not in state]
    for kind in {kinds[name] for name in rest}:
        of_kind = {name: shapes[name] for name in rest if kinds[name] == kind}
        flat = parts[f"others/{str(kind).removeprefix('torch.')}"]
        state |= _split(_checked(flat, kind, (sum(map(math.prod, of_kind.values())),)), of_kind)
    masks, gem = _unpacked_masks(layout, parts, {name: shapes[name] for name in layout["masks"]})
    draw = {**draw, "names": layout["drawn"]} if drawn else None
    return Stored(Ticket(state, masks, gem, facts, recipe), about, shapes, draw)


def _unpacked_masks(
    layout: Mapping[str, Any], parts: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Masks, Masks | None]:
    if layout["gem"] not in (None, "mask", "among", "whole"):
        raise ValueError("a gem in an unknown form")
    flat = decoded(parts["mask"].numpy().tobytes(), sum(map(math.prod, shapes.values())))
    gem = {None: None, "mask": flat}.get(layout["gem"], np.zeros_like(flat))
    if layout["gem"] in ("among", "whole"):
        entries = flat if layout["gem"] == "among" else np.ones_like(flat)
        gem[entries] = decoded(parts["gem"].numpy().tobytes(), int(entries.sum()))
    return _split(torch.from_numpy(flat), shapes), None if gem is None else _split(torch.from_numpy(gem), shapes)


def _split(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape).clone() for (name, shape), part in zip(shapes.items(), parts)}


def _checked(tensor: Tensor, kind: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if tensor.dtype != kind or tuple(tensor.shape) != shape:
        raise ValueError(f"{tuple(tensor.shape)} numbers where {shape} are expected")
    return tensor
