"""Hypothesis strategies for untrusted inputs: configs, command lines, tickets, checkpoints, images, results."""

import io
import json
import os
import pickle
import struct
import zlib
from functools import cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from args_helper import OPTIONS, RETIRED

PROJECT = Path(__file__).resolve().parent.parent
OWNED = "canary/owned"
"""The file that code in an untrusted file would create."""

# ---- bytes ---------------------------------------------------------------------------------------------------------


def _edited(raw: bytes, edit: tuple[str, float, int, bytes]) -> bytes:
    """Edit some bytes; the second part of an edit is its position as a fraction of the length."""
    kind, place, length, content = edit
    at = int(place * len(raw))
    lost = {"cut off": len(raw), "removed": length, "replaced": len(content)}.get(kind, 0)
    new = {"doubled": raw[at : at + length], "replaced": content, "inserted": content}.get(kind, b"")
    return raw[:at] + new + raw[at + lost :]


_FRACTION = st.floats(0, 1, exclude_max=True)
_KIND = st.sampled_from(["replaced", "replaced", "inserted", "removed", "doubled", "cut off"])
_EDIT = st.tuples(_KIND, _FRACTION, st.integers(1, 40), st.binary(min_size=1, max_size=8))
EDITS = st.lists(_EDIT, min_size=1, max_size=6)


def mutated(base: bytes | st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    raw = base if isinstance(base, st.SearchStrategy) else st.just(base)
    return st.builds(lambda raw, edits: reduce(_edited, edits, raw), raw, EDITS)


# ---- configs and command lines -------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)  # includes lone surrogates and NUL
NAMES = [*OPTIONS, *RETIRED, "p", "e", "<<", "no_cuda", "width_mult"]
VALUES = [
    "0", "1", "-1", "2.5", "1e2", "1e400", "true", "no", "~", "", "none", "1" + "0" * 30, "9" * 5000, "0x" + "f" * 6000,
    "1" + ":59" * 400, "1" + ":59" * 400 + ".5", "0b_", "0o_", ".nan", "-.inf", "2001-99-99", "2001-01-01", "a" * 5000,
    "0001-01-01T00:00:00+23:59", "../../x", "/etc/passwd", "..", ".", "a/../../b", "x\0y", "\ud800", "\x1b[2J", "'x",
    "no/such.py:function", "torchvision/x", "a" * 300 + ".py:f", "1, 2,,3", "३", "99999d", "1h", "resnet20", "Digits",
    "hc_iter", "imp", "SubnetConv", "None",
]  # fmt: skip
YAML_VALUES = [
    f"!!python/object/apply:os.system ['touch {OWNED}']", "!!python/name:os.system", "!!binary aGk=", "!!binary =",
    "!!int ''", "!!int a", "!!float ''", "!!bool maybe", "!!timestamp x", "!!set {a, b}", "!!omap [a: 1]", "!!null x",
    "!own x", "&a [*a, *a]", "&a 1", "*a", "*nowhere", "{a: 1}", "{<<: {a: 1}}", "[1, [2, [3]]]", "[1, 2", '"\\ud800"',
    '"\\0"', '"\\x1b[2J"', "? [a]", "|\n  text", ">-\n  text", "'", "@x", "%x", "\t1", "- 1", "[~]", "[2001-01-01, x]",
]  # fmt: skip
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
).map(json.dumps)


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"lr: *a{levels - 1}", f"? *a{levels - 1}\n: 1"])


@cache
def _published() -> list[bytes]:
    return [path.read_bytes() for path in sorted((PROJECT / "configs").rglob("*.yml"))]


LINES = st.builds(
    "{}: {}".format,
    st.sampled_from(NAMES) | st.sampled_from(["? [a]", "&k lr", "!!int x", "{a: b}", "1", "~", "[a, b]", "''"]),
    st.sampled_from(VALUES) | st.sampled_from(YAML_VALUES) | TREES | ANY_TEXT,
)
CONFIGS = st.one_of(
    st.binary(max_size=200),
    st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode(errors="surrogatepass")),
    st.builds(bomb, st.integers(2, 40), st.integers(1, 12)).map(str.encode),
    st.builds(lambda sign, times: (sign * times).encode(), st.sampled_from("[{-?!&*\"'|a \n"), st.integers(1, 4000)),
    st.builds(lambda times: b"lr: 1 # " + b"x" * times, st.integers(2**18 - 20, 2**18 + 20)),
    mutated(st.deferred(lambda: st.sampled_from(_published()))),
)

_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(VALUES)
_OPTIONS = st.dictionaries(
    st.sampled_from([*NAMES, "low", "high", "log", "trials"]),
    st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner)),
    max_size=4,
)
_PART = st.one_of(
    _OPTIONS, st.dictionaries(st.sampled_from([*NAMES, "a", "b/c", 1, None]), _OPTIONS, max_size=3), _LEAF
)
SWEEPS = st.one_of(
    CONFIGS,
    st.dictionaries(st.sampled_from("options vary search study runs x".split()), _PART).map(
        lambda parts: yaml.safe_dump({"runs": {"a": {"lr": 0.1}}, **parts}).encode(errors="surrogatepass")
    ),
)

_VALUE = st.sampled_from(VALUES) | ANY_TEXT | st.integers().map(str) | st.floats().map(str)
_FLAG = st.sampled_from(NAMES).map(lambda name: f"--{name}")
_WORDS = st.one_of(
    st.tuples(_FLAG, _VALUE), st.tuples(st.builds("{}={}".format, _FLAG, _VALUE)), st.tuples(_FLAG, _VALUE, _VALUE),
    st.tuples(st.builds("--no_{}".format, st.sampled_from(NAMES))),
    st.tuples(_VALUE | st.sampled_from(["--", "-", "-p", "-e", "-ep", "--=", "---", "-h"])),
)  # fmt: skip
WORDS = st.lists(_WORDS, max_size=5).map(lambda some: [word for words in some for word in words])

# ---- safetensors ---------------------------------------------------------------------------------------------------

DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "U16", "U32", "U64", "C64", "F8_E4M3", "F8_E5M2",
          "F8_E8M0", "F4", "F6_E2M3", "X", "", 5, None]  # fmt: skip
JUNK_JSON = st.sampled_from(
    ["", "null", "1", "[1]", '["no/such"]', "{", "[" * 5000, '{"a": 1}', '"state"', "NaN", "1" * 5000, "[null]"]
) | TREES  # fmt: skip
_CHANGE = st.tuples(
    _FRACTION, st.sampled_from(["dtype", "shape", "data_offsets", "name", "gone", "copy"]), st.sampled_from(DTYPES),
    st.lists(st.sampled_from([0, 1, 2, 3, 64, 2**31, 2**62, 2**63, 2**64, -1]), max_size=4),
    st.sampled_from("state/x mask/x gem/x state/ / train mask/linear.0.weight".split() + ["", "x" * 300, "é\n"]),
)  # fmt: skip


def _header_changed(raw: bytes, changes: list[tuple], metadata: dict[str, str], length: int) -> bytes:
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    about = {**header.pop("__metadata__", {}), **metadata}
    for place, kind, dtype, numbers, other in changes:
        name = list(header)[int(place * len(header))] if header else other
        tensor = header.pop(name, {})
        now = {"gone": {}, "name": {other: tensor}, "copy": {name: tensor, other: tensor}}
        header |= now.get(kind, {name: {**tensor, kind: dtype if kind == "dtype" else numbers}})
    text = json.dumps({"__metadata__": about, **header}).encode()
    return struct.pack("<Q", len(text) + length) + text + raw[8 + size :]


def tensor_files(path: Path) -> st.SearchStrategy[bytes]:
    """Draw safetensors files like this one, and bytes that are not safetensors."""
    raw, fields = path.read_bytes(), st.sampled_from(["order", "about", "facts", "recipe", "fingerprint", "x"])
    metadata, longer = st.dictionaries(fields, JUNK_JSON, max_size=3), st.sampled_from([0, 0, 0, 1, -1, 2**40])
    near = st.builds(_header_changed, st.just(raw), st.lists(_CHANGE, max_size=3), metadata, longer)
    return st.one_of(near, near, mutated(raw), mutated(near), st.binary(max_size=60))


# ---- files of torch.save -------------------------------------------------------------------------------------------


class Evil:
    """An object that would call a function when unpickled."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple:
        return self._call[0], self._call[1:]


EVIL = [Evil(os.system, f"touch {OWNED}"), Evil(eval, f"open({OWNED!r}, 'w').close()")]


def _leaves() -> list[Any]:
    return [
        None, True, False, 0, 1, -1, 3, 2.5, float("nan"), float("inf"), 10**30, 2**70000, "", "x", b"x", [], {}, (),
        {"a": 1}, [None] * 3, [0.0, 0.0, 0.0], [0.0, 0.0, 5.0], {1: 2}, {"param_groups": [], "state": {}}, {"x"},
        torch.zeros(()), torch.zeros(0), torch.zeros(4, 64), torch.ones(3, dtype=torch.complex64), [1],
        torch.full((4, 64), float("nan")), torch.zeros(4, 64, dtype=torch.float64), torch.zeros(4, 64).to_sparse(),
        torch.zeros(1).expand(4, 64), torch.empty(4, 64, device="meta"), torch.zeros(4, 64, dtype=torch.int8),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), torch.zeros(4, 64, dtype=torch.float8_e5m2),
        torch.quantize_per_tensor(torch.zeros(4, 64), 0.1, 0, torch.qint8), torch.nn.Parameter(torch.zeros(4, 64)),
        *EVIL,
    ]  # fmt: skip


LEAVES = st.deferred(lambda: st.sampled_from(_leaves()))
KEYS = ["epoch", "step", "x", "", 1, None, (1, 2), 2**70000, "linear.0.weight", "module.linear.0.weight", "state_dict"]


def _put(tree: Any, path: list[float], kind: str, key: Any, leaf: Any) -> Any:
    """Return the tree with one entry changed; `path` selects the branch of each level by a fraction."""
    if not path or not isinstance(tree, dict | list) or not tree:
        return leaf
    keys, changed = list(tree) if isinstance(tree, dict) else range(len(tree)), tree.copy()
    at = keys[int(path[0] * len(keys))]
    if len(path) == 1 and kind == "gone":
        del changed[at]
    elif len(path) == 1 and kind == "more" and isinstance(tree, dict):
        changed[key] = leaf
    else:
        changed[at] = _put(tree[at], path[1:], kind, key, leaf)
    return changed


def saved(tree: Any) -> bytes:
    """Serialise a tree by `torch.save`, with a valid checksum."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def _changed(tree: Any, depth: int, keys: list[Any], leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw trees like this one, with some entries changed."""
    place, kind = st.lists(_FRACTION, max_size=depth), st.sampled_from(["put", "put", "gone", "more"])
    changes = st.lists(st.tuples(place, kind, st.sampled_from(keys), leaves), min_size=1, max_size=3)
    return changes.map(lambda some: reduce(lambda now, change: _put(now, *change), some, tree))


def checkpoints(path: Path) -> st.SearchStrategy[bytes]:
    """Draw checkpoints like this one, with a valid checksum or without, and bytes that are not checkpoints."""
    near = _changed(torch.load(path, weights_only=True), 5, KEYS, LEAVES)
    junk = LEAVES | st.dictionaries(st.sampled_from(KEYS), LEAVES, max_size=3)
    pickled = st.sampled_from([*EVIL, {"state_dict": EVIL[0]}, [], 1]).map(pickle.dumps)
    raw = path.read_bytes()
    return st.one_of(*[near.map(saved)] * 3, junk.map(saved), mutated(raw), st.binary(max_size=60), pickled)


def json_files(path: Path) -> st.SearchStrategy[bytes]:
    """Draw JSON like this with changed values, and text that is not JSON."""
    raw, odd = path.read_bytes(), [None, "nan", float("nan"), 1e999, -5, 10**400, [], {"a": 1}]
    leaves = TREES.map(json.loads) | st.sampled_from(odd)
    near = st.just(json.loads(raw)) | _changed(json.loads(raw), 3, ["x", "", "trial"], leaves)
    return st.one_of(near.map(json.dumps).map(str.encode), mutated(raw), JUNK_JSON.map(str.encode))


# ---- image folders -------------------------------------------------------------------------------------------------


def _drawn(format: str, mode: str, size: tuple[int, int], frames: int) -> bytes:
    """Make an image file in a mode that its format supports."""
    pixels = np.arange(size[0] * size[1]).reshape(size[::-1]) % 256
    image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else (
        Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    )  # fmt: skip
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [image] * (frames - 1)} if frames > 1 and format != "BMP" else {}
    try:
        image.save(buffer, format, **more)
    except (OSError, KeyError, ValueError, TypeError):
        return _drawn("PNG", "L", size, 1)
    return buffer.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    raw = bytearray(_drawn("PNG", "L", (1, 1), 1))
    raw[16:24] = struct.pack(">II", width, height)
    return bytes(raw[:29] + struct.pack(">I", zlib.crc32(raw[12:29])) + raw[33:])


_SIDE = st.sampled_from([1, 2, 7, 8, 8, 8, 33])
DRAWN = st.builds(
    _drawn, st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    st.sampled_from(["L", "RGB", "RGBA", "CMYK", "P", "1", "I;16", "I", "F", "LA"]),
    st.tuples(_SIDE, _SIDE) | st.sampled_from([(1, 3000), (3000, 1)]), st.sampled_from([1, 1, 2]),
)  # fmt: skip
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
_BOMBS = st.builds(bomb_png, *[st.sampled_from([0, 1, 9000, 65535, 2**31 - 1, 2**32 - 1])] * 2)
_JUNK = st.sampled_from([b"", b"GIF89a", POSTSCRIPT]) | st.binary(max_size=60)
IMAGES = st.one_of(DRAWN, DRAWN, mutated(DRAWN), _BOMBS, _JUNK)
FILE_NAMES = ["0.png", "1.jpg", "2.JPEG", "3.tif", "4.webp", "-x.png", "a\nb.png", "\udcff.png", ".hidden.png", "a" * 99
              + ".png", "x.txt", "\x1b[2J.png", "é.png", "x.png.exe", "5.bmp"]  # fmt: skip
_ODD = st.sampled_from(["bird", "nowhere", "0.png", "/dev/zero", "pipe", {}])  # text: a link to it
CLASSES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "-rf", "\udcff", "é ", "a.png", "images"]),
    st.dictionaries(st.sampled_from(FILE_NAMES), IMAGES | _ODD, max_size=4) | st.sampled_from(["canary", "a", "b"]),
    max_size=3,
)
