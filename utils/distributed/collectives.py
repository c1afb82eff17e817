"""What the processes that train together tell one another. In a process that is alone all of this does nothing.

Every rank draws the same random numbers, holds the whole network, and takes every step; of each batch it computes its
own part. What follows from sums over the ranks is the same on all of them to the bit, which `consistency` verifies.
What is read, written or decided by the clock is the first rank's business (`rank_zero_only`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from itertools import islice
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from utils.distributed.launch import launched
from utils.errors import DistributedError, Stopped, UserError

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""For ranks that are alive: the first may download and decode a data set. One that has died is noticed at once."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)


# ---- who is there --------------------------------------------------------------------------------------------------


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_distributed() -> bool:
    """Whether the work at hand is that of several ranks, and not of one of them for all."""
    return world_size() > 1 and not _alone.get()


@contextmanager
def process_group(device: torch.device, backend: str) -> Iterator[None]:
    """Within: the processes that torchrun has started together are one group.

    Args:
        device: of this one.
        backend: `nccl` or `gloo`, for what is on a GPU; on the CPU it is always gloo.

    Raises:
        RanksApart: they do not find one another.
    """
    if launched().world == 1:
        yield
        return
    with _together():
        _join(f"cpu:gloo,cuda:{backend}" if device.type == "cuda" else "gloo")
    try:
        yield
        broadcast(None)  # nobody leaves before all are done
    except BaseException as error:
        # With a rank gone, taking leave of it could last for ever.
        if isinstance(error, Stopped):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _join(backends: str) -> None:
    store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    here = launched()
    if here.world == here.local_world:
        # On one machine torchrun keeps its store when it starts processes again, with the addresses of the dead in it.
        # (Over several machines a restart is another for each of them; with --rdzv-backend=c10d the store is new.)
        store = dist.PrefixStore(f"start {here.restart}", store)
    dist.init_process_group(backends, store=store, rank=number, world_size=count, timeout=PATIENCE)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of whatever kind its backend has
        raise DistributedError(
            "another process of this run has ended or cannot be reached; `torchrun --max-restarts=N` starts all of "
            "them again, from the last checkpoint"
        ) from error


# ---- numbers and tensors -------------------------------------------------------------------------------------------


def own_part(start: int, stop: int) -> slice:
    """This rank's part of the places from `start` to `stop`: `Tensor.tensor_split` into `in_parts`; all, if alone."""
    if not is_distributed():
        return slice(start, stop)
    each, over = divmod(stop - start, in_parts(stop - start, world_size()))
    begin, end = (min(start + n * each + min(n, over), stop) for n in (rank(), rank() + 1))
    return slice(begin, end)  # empty for the last ranks, where there are fewer parts


def in_parts(count: int, wanted: int) -> int:
    """Into how many parts to cut `count` images: each has two at least, for BatchNorm has no variance of one."""
    return max(1, min(wanted, count // 2))


def own_share(pieces: Iterable[T]) -> Iterator[T]:
    """The pieces that are this rank's, dealt out in turns; all of them, if it is alone."""
    return islice(pieces, rank(), None, world_size()) if is_distributed() else iter(pieces)


@torch.no_grad()
def all_reduce_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor, contiguous, by its sum over the ranks; the host does not wait for a GPU's."""
    if not is_distributed():
        return
    with _together():
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def all_reduce(*counts: int) -> list[int]:
    """Every number's sum over the ranks."""
    if not is_distributed():
        return list(counts)
    numbers = torch.tensor(counts)
    with _together():
        dist.all_reduce(numbers)
    return numbers.tolist()


class Agreement:
    """Numbers of which every rank gets the largest, all of them at the same step."""

    def __init__(self) -> None:
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def soon(self, *mine: int) -> list[int]:
        """The largest of what the ranks gave when this was called before; none waits: it is here, a step later.

        When there was something, what is given now is not told: it will be given again, unless it is settled by then.
        """
        if not is_distributed():
            return list(mine)
        before = self._arrived(len(mine))
        if any(before):
            return before
        numbers = torch.tensor(mine)
        with _together():  # on the CPU: the GPU goes on with its queue meanwhile
            self._under_way = dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True), numbers
        return before

    def now(self, *mine: int) -> list[int]:
        """The largest of what the ranks give now, or gave when `soon` was last called."""
        if not is_distributed():
            return list(mine)
        numbers = torch.tensor([max(pair) for pair in zip(mine, self._arrived(len(mine)))])
        with _together():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()

    def _arrived(self, count: int) -> list[int]:
        if self._under_way is None:
            return [0] * count
        work, numbers = self._under_way
        self._under_way = None
        with _together():
            work.wait()
        return numbers.tolist()


# ---- objects -------------------------------------------------------------------------------------------------------


def broadcast(value: T) -> T:
    """The first rank's value; tensors in it have to be on the CPU."""
    if not is_distributed():
        return value
    carried = [value]
    with _together():
        dist.broadcast_object_list(carried, src=0)
    return carried[0]


def all_gather(value: T) -> list[T]:
    """Every rank's value, in their order."""
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * world_size()
    with _together():
        dist.all_gather_object(values, value)
    return values


def rank_zero_only(function: Callable[P, T]) -> Callable[P, T]:
    """Called on every rank, run on the first, which tells the others what came of it, a UserError as well.

    Nobody goes on before it is done. What it calls takes the first rank for being alone.
    """

    @wraps(function)
    def on_every_rank(*args: P.args, **options: P.kwargs) -> T:
        if not is_distributed():
            return function(*args, **options)
        value, problem = None, None
        if rank() == 0:
            before = _alone.set(True)
            try:
                value = function(*args, **options)
            except UserError as error:
                problem = str(error)
            finally:
                _alone.reset(before)
        value, problem = broadcast((value, problem))
        if problem is not None:
            raise UserError(problem)
        return value

    return on_every_rank


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Within: the first rank, then the first of every other machine, then the rest: what one gets, the next ones find.

    So a data set is downloaded once on every machine, whether or not they share their disks.
    """
    here = launched()
    turn = 0 if rank() == 0 else 1 if here.local_rank == 0 else 2
    for _ in range(turn):
        broadcast(None)
    yield
    for _ in range(2 - turn):
        broadcast(None)
