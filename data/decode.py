"""One image file to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from utils.errors import UserError

# Image files by what is in them. PIL knows more; one of them, PostScript, it would have another program run.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# 89 million by default, half of what PIL refuses: what a file says of its size takes memory before a pixel is read.
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS
# These hold at most 16 bits a pixel; PIL hands them over as 32-bit numbers all the same.
_SIXTEEN_BITS_AT_MOST = ("PNG", "PPM")
# Of an image that is brought to a square, in its shorter sides.
_LONGEST_SIDE = 16


def read_image(path: Path) -> Tensor:
    """The pixels of an image file as RGB, (3, height, width) uint8, turned upright as its EXIF data says.

    Raises:
        UserError: it is no image, damaged, or its pixels are numbers of no known range.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file, or a link to none")
        with Image.open(path, formats=_FORMATS) as image:
            return _pixels(image)
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UserError(f"{path} is not a readable image ({error}); mend or remove it") from error


def _pixels(image: Image.Image) -> Tensor:
    """Raises: UserError: what is wrong with the image, after its name."""
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
    """Bring the shorter side to `shorter` pixels (default: `size`), and take the square of `size` in the middle.

    Args:
        pixels: (3, height, width) uint8.
        size: of the square.
        shorter: at least `size`.
    """
    # Of a strip, the longer side would grow as the shorter does: 1×60000 to 1000×60000000.
    longest = _LONGEST_SIDE * min(pixels.shape[1:])
    if max(pixels.shape[1:]) > longest:
        pixels = center_crop(pixels, [min(side, longest) for side in pixels.shape[1:]])
    return center_crop(resize(pixels, [shorter or size], antialias=True), [size, size])


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight, which PIL would cut off."""
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
