"""Random streams as pure functions of a seed: nothing of them needs saving."""

from __future__ import annotations

import hashlib

import torch


def derive_rng(seed: int, *path: str | int) -> torch.Generator:
    """A generator on the CPU that is a pure function of the seed and a path such as ("search", "batches", 3).

    Streams are independent of one another: a new one shifts none that was there, and a resumed run draws what the
    undisturbed one would have drawn.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
