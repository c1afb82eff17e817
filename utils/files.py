"""Reads files, and writes them atomically: a file is complete or absent.

All that a run stores, except TensorBoard's events, goes through `write_atomic`: a kill at any moment leaves nothing
half written. `read_json` and `load_tensors` turn a damaged file into a `UserError` that names it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SCRATCH = ".part"
"""The ending of a file that is being written; a killed process leaves it behind."""


def write_atomic(
    path: Path, content: bytes | str | list[bytes | memoryview], make_room: Callable[[], None] | None = None
) -> None:
    """Write `content` to `path` atomically: after a crash at any moment, the old or the new file is there, complete.

    Args:
        path: the file.
        content: its content, or parts that are written one after another; a string is encoded as UTF-8.
        make_room: called when the content is on disk under a temporary name, right before it is renamed to `path`.

    Raises:
        UserError: the folder cannot be written to, or the disk is full; an existing file stays unchanged.
    """
    raw = content.encode() if isinstance(content, str) else content
    # In the same folder, because a rename is atomic within one file system only.
    scratch = path.parent / f".{path.name}.{secrets.token_hex(4)}{SCRATCH}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file:
            file.writelines(raw if isinstance(raw, list) else [raw])
            file.flush()
            os.fsync(file.fileno())  # otherwise the new name could hold an empty file after a power cut
        if make_room:
            make_room()
        os.replace(scratch, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:  # removes the temporary file after a failure; after success it no longer has this name
        with suppress(OSError):
            scratch.unlink()


def files_below(root: Path, *names: str) -> list[Path]:
    """Return, sorted, the files of these names in a folder at any depth; links to folders are followed, each once."""
    found, seen = [], set()
    for folder, inner, there in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place not in seen:
            found += [Path(folder, name) for name in names if name in there]
        inner[:] = [] if place in seen else sorted(inner)
        seen.add(place)
    return sorted(found)


def make_folder(path: Path) -> None:
    """Make a folder and its parents unless they exist.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically, unless the file has it; raises as `write_atomic` does."""
    raw = (json.dumps(content, indent=2) + "\n").encode()
    with suppress(OSError):
        if path.read_bytes() == raw:  # it may lie where nothing can be written
            return
    write_atomic(path, raw)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a CSV table with the columns of the first row.

    Args:
        rows: column -> value; None becomes an empty cell, and floats are written in full precision.

    Raises:
        ValueError: a later row has a column that the first one lacks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV table (see `as_csv`) atomically; write no file if there are no rows.

    Raises:
        ValueError: as for `as_csv`.
        UserError: as for `write_atomic`.
    """
    if rows:
        write_atomic(path, as_csv(rows))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of tensors: their entries in order, little-endian, one tensor after another."""
    import torch  # not at the top: the options are read before torch is needed

    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def safetensors_header(path: Path) -> dict[str, str]:
    """Read the metadata in the header of a `.safetensors` file; return {} for any other file.

    It does not import torch, because options are read before torch is needed. The file may come from anyone: the values
    are whatever JSON stands there, and the tensors are not looked at.

    Source: the format, an 8-byte little-endian length and then JSON: github.com/huggingface/safetensors.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            said = json.loads(file.read(min(length, _LONGEST_HEADER))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


_LONGEST_HEADER = 100_000_000  # the format's own limit


def safetensors_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return the parts of a `.safetensors` file, without a copy of the tensors: `safetensors.torch.save` makes two.

    Args:
        tensors: name -> a contiguous tensor on the CPU, of a type in `_TYPES`.
        metadata: of the header.
    """
    header, end, parts = {"__metadata__": metadata}, 0, []
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):  # so all are aligned
        start, end = end, end + tensor.nbytes
        parts.append(tensor.numpy().data)
        header[name] = {
            "dtype": _TYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return [len(raw).to_bytes(8, "little"), raw, *parts]


_TYPES = {"torch.bool": "BOOL", "torch.uint8": "U8", "torch.int64": "I64"}
"""The names of types in a `.safetensors` file."""


def load_tensors(path: Path) -> Any:
    """Load a `torch.save` file to the CPU; only tensors and plain values are accepted, and no code is run.

    Raises:
        UserError: the file cannot be read, is damaged, or holds anything else.
    """
    import torch  # not at the top: the options are read before torch is needed

    try:
        if not path.is_file():  # reading a pipe would block
            raise ValueError("it is no file")
        content = path.read_bytes()
        # PyTorch verifies no checksum when it loads: a flipped bit in a tensor would go unnoticed.
        if zipfile.is_zipfile(io.BytesIO(content)) and zipfile.ZipFile(io.BytesIO(content)).testzip():
            raise ValueError("a checksum in it is another")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise UserError(
            f"cannot read {path}: it is damaged, or holds something else than tensors and plain values"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, if the file system can do this for a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
