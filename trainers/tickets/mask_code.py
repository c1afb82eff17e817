"""Compact encoding of masks: the gaps between kept entries, deflated. Pure functions, inverse to one another.

The first byte is the form of the rest, which is a zlib stream:

    0  a byte for every kept entry: the number of entries between it and the kept one before it. 255 adds 255 to the gap
       of the next byte. Entries after the last kept one are not encoded.
    1  the same for the pruned entries.
    2  eight entries a byte, the first in the highest bit.

A mask of N entries and density d needs at least N · H(d) / 8 bytes on average, H being the binary entropy, unless it
has structure. Gaps need 1.01 to 1.04 times that at densities from 5% to 0.6%.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

KEPT, REMOVED, BITS = range(3)
_ESCAPE = 255
# Gaps have no repetitions: the zlib strategies that search for few or none fit the code of the symbols better.
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)
_SPARSE = 0.05


def encoded(mask: np.ndarray) -> bytes:
    """Encode a mask in the shortest of its forms.

    Args:
        mask: (N,) bool.
    """
    count, density = len(mask), float(mask.mean()) if len(mask) else 0.0
    form, places = (KEPT, mask) if density <= 0.5 else (REMOVED, ~mask)
    forms = {form: _gaps(np.flatnonzero(places))}
    if _SPARSE * count < places.sum():  # below this density, bits are never shorter
        forms[BITS] = np.packbits(mask).tobytes()
    found = (bytes([form]) + _deflated(raw, strategy) for form, raw in forms.items() for strategy in _STRATEGIES)
    return min(found, key=len)


def decoded(code: bytes, count: int) -> np.ndarray:
    """Decode the mask that `encoded` encoded: (count,) bool.

    Raises:
        ValueError: the bytes do not encode `count` entries. Nothing larger than that is ever unpacked.
    """
    read = _FORMS.get(code[0]) if code else None
    if read is None:
        raise ValueError("a mask in an unknown form")
    return read(code[1:], count)


def _gaps(places: np.ndarray) -> bytes:
    """Encode increasing positions, (k,) integers: a gap g becomes ⌊g / 255⌋ bytes of 255 and one of g mod 255."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // _ESCAPE + 1)
    told = np.full(ends[-1] if len(ends) else 0, _ESCAPE, np.uint8)
    told[ends - 1] = gaps % _ESCAPE
    return told.tobytes()


def _from_gaps(packed: bytes, count: int) -> np.ndarray:
    # The longest code of `count` entries has a byte for each of them and one for every 255 of their gaps.
    told = np.frombuffer(inflated(packed, count + count // _ESCAPE + 1), np.uint8).astype(np.int64)
    ends = told != _ESCAPE
    places = (np.cumsum(told + ends) - 1)[ends]
    dangling, beyond = len(told) and not ends[-1], len(places) and places[-1] >= count
    if dangling or beyond:
        raise ValueError(f"a mask that does not fit {count} places")
    mask = np.zeros(count, dtype=bool)
    mask[places] = True
    return mask


def _from_bits(packed: bytes, count: int) -> np.ndarray:
    size = -(-count // 8)
    raw = inflated(packed, size)
    if len(raw) != size:
        raise ValueError(f"a mask that does not fit {count} places")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count).astype(bool)


_FORMS: dict[int, Callable[[bytes, int], np.ndarray]] = {
    KEPT: _from_gaps,
    REMOVED: lambda packed, count: ~_from_gaps(packed, count),
    BITS: _from_bits,
}


def _deflated(raw: bytes, strategy: int) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return squeeze.compress(raw) + squeeze.flush()


def inflated(packed: bytes, limit: int) -> bytes:
    """Decompress a zlib stream that holds at most `limit` bytes.

    Raises:
        ValueError: it holds more, is cut off or damaged, or something follows it.
    """
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed, limit + 1)
    except zlib.error as error:
        raise ValueError(f"a stream that is damaged ({error})") from error
    if len(raw) > limit or not stream.eof or stream.unused_data:
        raise ValueError("a stream that is longer or shorter than it should be")
    return raw
