"""Decodes one image file to pixels.

The files may come from anyone: formats and sizes are limited before anything is decoded. `data.decoded_cache`
and `data.streamed_batches` call this in threads.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import center_crop, pil_to_tensor

from utils.errors import UserError

# The allowed formats, recognised by content. PIL knows more, but runs another program to read PostScript.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# 89 million by default, half of PIL's own limit. The size in a file's header costs memory before any pixel is read.
MOST_PIXELS = Image.MAX_IMAGE_PIXELS
_LARGEST_FILE = 2**30
_END_OF_JPEG = b"\xff\xd9"
# EXIF orientations in which height and width change places.
_TURNED = (5, 6, 7, 8)
# These formats hold at most 16 bits per channel, but PIL may return 32-bit integers.
_SIXTEEN_BITS_AT_MOST = ("PNG", "PPM")
# The longest side, as a multiple of the shorter one, of an image that is resized to a square.
_LONGEST_SIDE = 16


def read_image(path: Path, surplus: Callable[[int, int], float] | None = None) -> Tensor:
    """Read an image file as RGB, (3, height, width) uint8, rotated upright by its EXIF data.

    Grey images get three equal channels, palettes are resolved, and transparency is dropped. Sixteen bits become eight.
    Of an animation it is the first picture.

    Args:
        path: a file in one of the formats of `_FORMATS`, whatever its name ends in.
        surplus: (height, width) -> by how much the image is larger than needed. From 2, 4 and 8 on, a JPEG is decoded
            to a half, a quarter or an eighth of its size; None: to its full size.

    Raises:
        UserError: the file is not an image, is damaged or too large, or the range of its pixel values is unknown.
    """
    with opened(path) as (content, image):
        height, width = size_of(image)
        reduced = _reduction(height, width, surplus)
        if is_plain_jpeg(image):
            with suppress(ValueError):  # PIL says whether the damage can be repaired
                return decode_jpeg(content, height, width, surplus)
        if reduced > 1 and image.format == "JPEG":
            image.draft("RGB", (image.width // reduced, image.height // reduced))
        return _pixels(image)


def decode_jpeg(
    content: np.ndarray, height: int, width: int, surplus: Callable[[int, int], float] | None = None
) -> Tensor:
    """Decode a JPEG in grey or RGB to (3, height, width) uint8, to PIL's very pixels and somewhat faster.

    Args:
        content: (n,) uint8.
        height, width: the size that it has to have, so that no file takes more memory than was allowed.
        surplus: as for `read_image`.

    Raises:
        ValueError: it is damaged, or of another size.
    """
    if simplejpeg.decode_jpeg_header(content)[:2] != (height, width):
        raise ValueError("it is of another size")
    reduced = _reduction(height, width, surplus)
    # It takes the smallest of libjpeg's sizes that is at least this large; 0 would be the whole one.
    least = {"min_height": height // reduced, "min_width": width // reduced} if reduced > 1 else {}
    return torch.from_numpy(simplejpeg.decode_jpeg(content, **least)).permute(2, 0, 1)


def whole_jpeg(
    content: np.ndarray, height: int, width: int, surplus: Callable[[int, int], float] | None = None
) -> Tensor | None:
    """Return the bytes of a JPEG, (n,) uint8, for a decoder that knows no smaller sizes.

    Args:
        content, height, width, surplus: as for `decode_jpeg`.

    Returns:
        None if the image is larger than needed, of another size, or damaged.
    """
    with suppress(ValueError):
        is_cut_off = content[-2:].tobytes() != _END_OF_JPEG  # not every decoder minds
        size = simplejpeg.decode_jpeg_header(content)[:2]
        if _reduction(height, width, surplus) == 1 and size == (height, width) and not is_cut_off:
            return torch.from_numpy(content)
    return None


@contextmanager
def opened(path: Path) -> Iterator[tuple[np.ndarray, Image.Image]]:
    """Open an image file: its bytes, (n,) uint8, and PIL's image, whose header is read.

    Raises:
        UserError: as `read_image`; also for an error that occurs while it is open.
    """
    try:
        if not path.is_file():  # reading a pipe would block
            raise ValueError("it is no file, or a link to none")
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"is too large an image: a file of more than {_LARGEST_FILE / 2**30:.0f} GiB")
        content = np.fromfile(path, np.uint8)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                size = f"{image.width}×{image.height} pixels, more than {MOST_PIXELS:,}"
                raise UserError(f"is too large an image: {size}")
            yield content, image
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not a readable image (it is none of {', '.join(_FORMATS)}); mend or remove it"
        ) from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        told = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a readable image ({told}); mend or remove it") from error


def surplus_over(side: int, height: int, width: int) -> float:
    """Return by how much an image is larger than twice what its shorter side is resized to.

    From twice the size on, nobody sees whether pixels were averaged by the decoder or afterwards.
    """
    return min(height, width) / (2 * side)


def size_of(image: Image.Image) -> tuple[int, int]:
    """Return the height and width of an image once it is upright."""
    return (image.width, image.height) if _orientation(image) in _TURNED else (image.height, image.width)


def is_plain_jpeg(image: Image.Image) -> bool:
    """Return whether it is an upright JPEG in grey or RGB, which every decoder takes in the same way."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _reduction(height: int, width: int, surplus: Callable[[int, int], float] | None) -> int:
    larger = surplus(height, width) if surplus else 1.0
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(1.0, larger))


def _pixels(image: Image.Image) -> Tensor:
    """Raises: UserError: what is wrong with the image; the caller puts the path in front."""
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS_AT_MOST)
    if image.mode.startswith(("I", "F")) and not sixteen_bits:
        raise UserError(
            f"has pixels of 32 bits (mode {image.mode}), of which black and white are not known; save it with 8 or 16 "
            "bits"
        )
    upright = ImageOps.exif_transpose(image)
    return pil_to_tensor(_to_eight_bits(upright) if sixteen_bits else upright.convert("RGB"))


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize an image (3, h, w) uint8 to (3, height, width) by antialiased bilinear interpolation.

    It is fastest where the three values of a pixel are neighbours in memory, as decoders leave them.
    """
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # so that PyTorch sees that they are neighbours
    if batch.is_cuda:  # where PyTorch does not resize bytes
        return F.interpolate(batch.float(), (height, width), mode="bilinear", antialias=True)[0].round().byte()
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


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
    return center_crop(shorter_side(pixels, shorter or size), [size, size])


def shorter_side(pixels: Tensor, side: int) -> Tensor:
    """Resize an image (3, height, width) uint8 so that its shorter side is `side`; the longer one is rounded down."""
    height, width = pixels.shape[1:]
    if min(height, width) == side:
        return pixels
    return resized(pixels, *(max(side, side * own // min(height, width)) for own in (height, width)))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale sixteen-bit grey to eight bits, because PIL would clip it; 65535 / 257 = 255."""
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
