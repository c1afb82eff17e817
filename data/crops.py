"""Draws the part of a photograph that is trained on."""

from __future__ import annotations

import math
import random
from functools import lru_cache

# Of a random crop: its share of the image's area, and its width over its height.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


@lru_cache(maxsize=1_000)  # of an image that is not decoded to a smaller size it is asked for twice
def crop_box(height: int, width: int, seed: int) -> tuple[int, int, int, int]:
    """Draw a random crop (top, left, height, width): 8 to 100% of the area, aspect ratio from 3:4 to 4:3.

    Args:
        height, width: size of the image.
        seed: the only source of randomness.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (arXiv 1409.4842), §6.
    """
    draw = random.Random(seed)
    for _ in range(10):
        area = height * width * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return draw.randint(0, height - high), draw.randint(0, width - wide), high, wide
    # The image is so narrow that no crop fitted: take the largest central crop of an allowed aspect ratio.
    high, wide = min(height, round(width * RATIO[1])), min(width, round(height * RATIO[1]))
    return (height - high) // 2, (width - wide) // 2, max(1, high), max(1, wide)
