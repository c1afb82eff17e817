"""Communication between the processes of a distributed run. In a single process all of this does nothing.

Every rank draws the same random numbers, holds the whole network, and takes every step, but computes only its own part
of each batch. Gradients and metrics are summed over the ranks, so all ranks stay equal to the bit; `consistency`
verifies this. Only rank 0 reads and writes the run's files and consults the clock (`rank_zero_only`).
"""

from __future__ import annotations

import io
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
from utils.errors import DistributedError, Stopped, UserError, is_out_of_memory, printable

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""Timeout for live ranks: rank 0 may take long to download and decode a data set. A dead rank is noticed at once."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)


# ---- ranks and the process group -----------------------------------------------------------------------------------


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_distributed() -> bool:
    """Return whether several ranks do the current work together; False inside a `rank_zero_only` function."""
    return world_size() > 1 and not _alone.get()


@contextmanager
def process_group(device: torch.device, backend: str) -> Iterator[None]:
    """Make the processes that torchrun started together one process group for the block.

    Args:
        device: this process's device.
        backend: `nccl` or `gloo`, for tensors on a GPU; tensors on the CPU always use gloo.

    Raises:
        DistributedError: the processes cannot reach one another.
    """
    if launched().world == 1:
        yield
        return
    with _together():
        _join(f"cpu:gloo,cuda:{backend}" if device.type == "cuda" else "gloo")
    try:
        yield
        broadcast(None)  # no rank leaves before all are done
    except Stopped:  # all ranks stop together; after any other error a rank may be lost, and this could hang
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _join(backends: str) -> None:
    store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    here = launched()
    if here.world == here.local_world:
        # On one machine torchrun keeps its store over a restart, with the addresses of the dead processes in it.
        # (Over several machines the restart counts differ, and with --rdzv-backend=c10d the store is new.)
        store = dist.PrefixStore(f"start {here.restart}", store)
    dist.init_process_group(backends, store=store, rank=number, world_size=count, timeout=PATIENCE)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # each backend raises its own subclass
        if is_out_of_memory(error):
            raise
        told = printable(str(error).strip().partition("\n")[0])
        raise DistributedError(
            f"another process of this run has ended or cannot be reached ({told}); `torchrun --max-restarts=N` starts "
            "all of them again, from the last checkpoint"
        ) from error


# ---- numbers and tensors -------------------------------------------------------------------------------------------


def own_part(start: int, stop: int) -> slice:
    """Return this rank's slice of `start`:`stop`, cut as `Tensor.tensor_split` does; all of it in a single process.

    The slices of all ranks cover `start`:`stop` in rank order, so a batch is the same images for any number of ranks.
    """
    if not is_distributed():
        return slice(start, stop)
    each, over = divmod(stop - start, in_parts(stop - start, world_size()))
    begin, end = (min(start + n * each + min(n, over), stop) for n in (rank(), rank() + 1))
    return slice(begin, end)  # empty for the last ranks if there are fewer parts than ranks


def in_parts(count: int, wanted: int) -> int:
    """Return how many parts to cut `count` images into: each needs two, as BatchNorm has no variance of one image."""
    return max(1, min(wanted, count // 2))


def own_share(pieces: Iterable[T]) -> Iterator[T]:
    """Return every `world_size`-th piece, starting at this rank; all pieces in a single process."""
    return islice(pieces, rank(), None, world_size()) if is_distributed() else iter(pieces)


@torch.no_grad()
def all_reduce_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each contiguous tensor by its sum over the ranks; the host does not wait for a GPU."""
    if not is_distributed():
        return
    with _together():
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


class Agreement:
    """Numbers of which every rank gets the maximum over the ranks, at the same step on all of them."""

    def __init__(self) -> None:
        self._under_way: tuple[dist.Work, Tensor] | None = None

    def soon(self, *mine: int) -> list[int]:
        """Return the maxima of the numbers that the ranks passed to the previous call, so that no rank waits.

        If one of these is not 0, the numbers of this call are not sent: the caller passes them again if still needed.
        """
        if not is_distributed():
            return list(mine)
        before = self._arrived(len(mine))
        if any(before):
            return before
        numbers = torch.tensor(mine)
        with _together():  # on the CPU, so that the GPU works on its queue meanwhile
            self._under_way = dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True), numbers
        return before

    def now(self, *mine: int) -> list[int]:
        """Return the maxima of the numbers passed now and of those still under way from the last `soon`."""
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
    """Return rank 0's value on every rank; tensors in it have to be on the CPU."""
    if not is_distributed():
        return value
    content = io.BytesIO()
    if rank() == 0:
        torch.save(value, content)  # pickle alone would write the whole of a tensor for each of its views
    carried = [content.getvalue()]
    with _together():
        dist.broadcast_object_list(carried, src=0)
    return value if rank() == 0 else torch.load(io.BytesIO(carried[0]), weights_only=False)


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, in rank order."""
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * world_size()
    with _together():
        dist.all_gather_object(values, value)
    return values


def rank_zero_only(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function on rank 0 only, and broadcast its result or its UserError to all ranks.

    Every rank has to call it, and waits until it is done. Inside it, `is_distributed()` is False.
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
    """Run the block on rank 0, then on the first rank of every other machine, then on the remaining ranks.

    So a data set is downloaded at most once on every machine, whether or not the machines share a disk.
    """
    here = launched()
    turn = 0 if rank() == 0 else 1 if here.local_rank == 0 else 2
    for _ in range(turn):
        broadcast(None)
    yield
    for _ in range(2 - turn):
        broadcast(None)
