"""Decodes one image file to pixels.

The files may come from anyone: formats and sizes are limited before anything is decoded. `data.decoded_cache` calls
this in threads and `data.streamed_batches` in worker processes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from utils.errors import UserError

# The allowed formats, recognised by content. PIL knows more, but runs another program to read PostScript.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# 89 million by default, half of PIL's own limit. The size in a file's header costs memory before any pixel is read.
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS
# These formats hold at most 16 bits per channel, but PIL may return 32-bit integers.
_SIXTEEN_BITS_AT_MOST = ("PNG", "PPM")
# The longest side, as a multiple of the shorter one, of an image that is resized to a square.
_LONGEST_SIDE = 16


def read_image(path: Path) -> Tensor:
    """Read an image file as RGB, (3, height, width) uint8, rotated upright by its EXIF data.

    Grey images get three equal channels, palettes are resolved, and transparency is dropped. Sixteen bits become eight.

    Args:
        path: a file in one of the formats of `_FORMATS`, whatever its name ends in.

    Raises:
        UserError: the file is not an image, is damaged or too large, or the range of its pixel values is unknown.
    """
    try:
        if not path.is_file():  # reading a pipe would block
            raise ValueError("it is no file, or a link to none")
        with Image.open(path, formats=_FORMATS) as image:
            return _pixels(image)
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UserError(f"{path} is not a readable image ({error}); mend or remove it") from error


def _pixels(image: Image.Image) -> Tensor:
    """Raises: UserError: what is wrong with the image; the caller puts the path in front."""
    if image.width * image.height > _MOST_PIXELS:
        raise UserError(f"is too large an image: {image.width}×{image.height} pixels, more than {_MOST_PIXELS:,}")
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS_AT_MOST)
    if image.mode.startswith(("I", "F")) and not sixteen_bits:
        raise UserError(
            f"has pixels of 32 bits (mode {image.mode}), of which black and white are not known; save it with 8 or 16 "
            "bits"
        )
    upright = ImageOps.exif_transpose(image)
    return pil_to_tensor(_to_eight_bits(upright) if sixteen_bits else upright.convert("RGB"))


def middle_square(pixels: Tensor, size: int, shorter: int | None = None) -> Tensor:
    """Resize the shorter side to `shorter` pixels (default: `size`), and crop the central square of side `size`.

    Args:
        pixels: (3, height, width) uint8.
        size: side of the square.
        shorter: at least `size`.

    Returns:
        (3, size, size) uint8.
    """
    # Cut long strips first: their longer side grows with the shorter one, as from 1×60000 to 1000×60000000.
    longest = _LONGEST_SIDE * min(pixels.shape[1:])
    if max(pixels.shape[1:]) > longest:
        pixels = center_crop(pixels, [min(side, longest) for side in pixels.shape[1:]])
    return center_crop(resize(pixels, [shorter or size], antialias=True), [size, size])


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale sixteen-bit grey to eight bits, because PIL would clip it; 65535 / 257 = 255."""
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
