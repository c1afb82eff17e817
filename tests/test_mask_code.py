"""The code of masks: by hand, back and forth at every density, near the entropy, and never unpacked beyond the mask."""

import zlib

import numpy as np
import pytest

from trainers.tickets.mask_code import BITS, KEPT, REMOVED, decoded, encoded, inflated

RESNET20 = 268_048


def drawn(count: int, kept: int, seed: int = 0) -> np.ndarray:
    mask = np.zeros(count, dtype=bool)
    mask[np.random.default_rng(seed).permutation(count)[:kept]] = True
    return mask


def test_gaps_by_hand():
    mask = np.zeros(2000, dtype=bool)
    mask[[0, 3, 258, 514, 771, 1282]] = True  # gaps 0, 2, 254, 255, 256, 510
    code = encoded(mask)
    assert code[0] == KEPT
    assert list(zlib.decompress(code[1:])) == [0, 2, 254, 255, 0, 255, 1, 255, 255, 0]
    assert encoded(~mask) == bytes([REMOVED]) + code[1:]
    assert np.array_equal(decoded(code, 2000), mask)


@pytest.mark.parametrize("percent", [0, 0.59, 1, 1.44, 3, 5, 50, 99.9, 100])
def test_back_and_forth_at_the_size_of_resnet20_near_the_entropy(percent):
    mask = drawn(RESNET20, round(RESNET20 * percent / 100))
    code = encoded(mask)
    assert np.array_equal(decoded(code, RESNET20), mask)
    assert (code[0] == BITS) == (percent == 50)
    if 0.5 < percent <= 5:
        d = percent / 100
        assert len(code) <= 1.045 * -RESNET20 * (d * np.log2(d) + (1 - d) * np.log2(1 - d)) / 8


def test_random_masks_of_all_sizes_and_densities():
    rng = np.random.default_rng(1)
    for seed in range(200):
        count = int(rng.integers(0, 3000))
        mask = drawn(count, int(count * rng.random() ** 3), seed)
        mask = ~mask if seed % 2 else mask
        assert np.array_equal(decoded(encoded(mask), count), mask)


@pytest.mark.parametrize("code", [
    b"", b"\x03" + zlib.compress(b""), b"\x00no stream", encoded(drawn(4000, 100))[:-3],
    encoded(drawn(4000, 100)) + b"more", bytes([KEPT]) + zlib.compress(bytes([255])),  # a gap that no place ends
    bytes([KEPT]) + zlib.compress(bytes([254] * 20)),  # beyond the last place
    *(bytes([kind]) + zlib.compress(bytes(10_000_000)) for kind in (KEPT, BITS)),
    bytes([BITS]) + zlib.compress(bytes(499)),
])  # fmt: skip
def test_what_is_no_code_is_refused(code):
    with pytest.raises(ValueError, match=r"mask|stream"):
        decoded(code, 4000)


def test_no_more_is_unpacked_than_allowed():
    assert inflated(zlib.compress(bytes(10)), 10) == bytes(10)
    with pytest.raises(ValueError, match="longer"):
        inflated(zlib.compress(bytes(2**26)), 10)
