"""Random streams as pure functions of a seed, so that no generator state needs saving."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_rng(seed: int, *path: str | int) -> torch.Generator:
    """Derive a CPU generator from the seed and a path such as ("search", "batches", 3).

    Streams are independent: adding one changes no other, and a resumed run draws what an uninterrupted one draws.
    The generator is on the CPU whatever the device, because a GPU's would draw other numbers.

    Args:
        seed: of the run (`effective_seed`, which differs between trials).
        path: stage, stream and, as needed, epoch and step.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits: a non-negative int64


@contextmanager
def seeding_torch(generator: torch.Generator) -> Iterator[None]:
    """Let what draws from PyTorch's own generator, such as Dropout or an initialisation, draw by this one's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield
