"""One image file to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from utils.errors import UserError

# These hold at most 16 bits a pixel; PIL hands them over as 32-bit numbers all the same.
_SIXTEEN_BITS_AT_MOST = ("PNG", "PPM")


def read_image(path: Path) -> Tensor:
    """The pixels of an image file as RGB, (3, height, width) uint8, turned upright as its EXIF data says.

    Raises:
        UserError: it is no image, damaged, or its pixels are numbers of no known range.
    """
    try:
        with Image.open(path) as image:
            sixteen_bits = image.mode.startswith("I;16") or (
                image.mode == "I" and image.format in _SIXTEEN_BITS_AT_MOST
            )
            if image.mode.startswith(("I", "F")) and not sixteen_bits:
                raise UserError(
                    f"{path} has pixels of 32 bits (mode {image.mode}), of which black and white are not known; save "
                    "it with 8 or 16 bits"
                )
            upright = ImageOps.exif_transpose(image)
            return pil_to_tensor(_to_eight_bits(upright) if sixteen_bits else upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}); mend or remove it") from error


def middle_square(pixels: Tensor, size: int, shorter: int | None = None) -> Tensor:
    """Bring the shorter side to `shorter` pixels (default: `size`), and take the square of `size` in the middle.

    Args:
        pixels: (3, height, width) uint8.
        size: of the square.
        shorter: at least `size`.
    """
    return center_crop(resize(pixels, [shorter or size], antialias=True), [size, size])


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight, which PIL would cut off."""
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
