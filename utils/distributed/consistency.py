"""Verifies that all ranks of a run hold the same tensors, by comparing the hash of each tensor over the ranks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from utils.distributed import collectives as ranks
from utils.errors import DistributedError
from utils.files import digest_of


def assert_same_on_all_ranks(tensors: Mapping[str, Tensor], when: str) -> None:
    """Compare the hashes of all tensors over the ranks.

    Args:
        tensors: by name, such as a state_dict.
        when: the point of the run, for the message.

    Raises:
        DistributedError: a tensor of some rank differs from rank 0's.
    """
    if not ranks.is_distributed():
        return
    own = {name: digest_of([tensor]) for name, tensor in tensors.items()}
    first, *others = ranks.all_gather(own)
    for number, its in enumerate(others, start=1):
        for name, digest in first.items():
            if its.get(name) != digest:
                raise DistributedError(
                    f"rank {number} has another {name} than rank 0 has, {when}: the run ends here. Its last checkpoint "
                    "is from before; a GPU that computes wrongly, different versions on the machines, or a layer of "
                    "your own that changes a buffer as it computes can be why"
                )
