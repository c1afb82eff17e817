"""Threads that decode images: decoding, resizing and encoding do not hold Python's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from utils.distributed.launch import usable_workers

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_ONCE = 1_000  # items that wait for a thread: each takes memory


def thread_pool(workers: int, begin: Callable[[], None] = lambda: None) -> ThreadPoolExecutor:
    """Return a pool of at least one thread, and at most as many as there are processors.

    Args:
        workers: number of threads.
        begin: each thread calls it first.
    """
    # Setting the number of PyTorch's threads in one thread sets it for all that have not asked for theirs before.
    torch.get_num_threads()
    return ThreadPoolExecutor(max(1, usable_workers(workers)), initializer=_begin, initargs=(begin,))


def _begin(begin: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # otherwise each would start as many of PyTorch's as there are processors
    begin()


def in_threads(pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what a function returns for each of many items, in order."""
    for start in range(0, len(items), _AT_ONCE):
        yield from pool.map(function, items[start : start + _AT_ONCE])
