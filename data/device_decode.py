"""Decodes JPEGs on a GPU, by TorchCodec (nvJPEG)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from utils.errors import UserError

# Before 0.17, the decoder may write into memory that queued work still reads (meta-pytorch/torchcodec, pull 1634).
_NEEDED = (0, 17)


def device_decoder(device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return a function that decodes a batch of JPEGs, each (n,) uint8 on the CPU, to (3, height, width) uint8.

    It raises `RuntimeError` if one of them is damaged. On a GPU, colours of half the resolution are not smoothed.

    Args:
        device: where to decode; on a CPU the pixels are those of `data.decode`.

    Raises:
        UserError: TorchCodec is missing, or cannot be used.
    """
    try:
        found = version("torchcodec")
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < _NEEDED:
            raise ImportError(f"version {found} is too old")
        from torchcodec.decoders import decode_jpeg  # optional, and takes a second to import

        # Else what fails with every batch would look like damaged images, and leave all of them to the CPU.
        decode_jpeg(simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8)), device=device)
    except (PackageNotFoundError, ImportError, OSError, RuntimeError) as error:
        told = str(error).strip().partition("\n")[0]
        raise UserError(
            f"decode_on: cuda needs TorchCodec {'.'.join(map(str, _NEEDED))} or newer ({told}); install it by pip "
            "install torchcodec, or leave decode_on at cpu"
        ) from error
    return partial(_decoded, decode_jpeg, device)


def _decoded(decode_jpeg: Callable[..., list[Tensor]], device: torch.device, encoded: list[Tensor]) -> list[Tensor]:
    return decode_jpeg(encoded, mode="RGB", device=device) if encoded else []
