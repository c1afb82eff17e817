"""ImageNet (ILSVRC 2012): a thousand classes, 1.28 million photographs; streamed from `train/` and `val/`.

Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015 (arXiv 1409.0575).
"""

from __future__ import annotations

from pathlib import Path

from args_helper import Config
from data.class_folders import find_part, find_root
from data.spec import DataSpec, Source, as_found, numbered

# The statistics are those that torchvision's trained networks (the option `weights`) were trained with.
SPEC = DataSpec(
    shape=(3, 224, 224),
    classes=numbered(1000),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    flip=True,
    zoom=True,
)
FOLDERS = ("imagenet", "ImageNet")
LAYOUT = "ImageNet has train/<class>/*.JPEG and val/<class>/*.JPEG"
ADVICE = "it is given to researchers by image-net.org: unpack it, the images of val in folders of their classes as well"
HELD_OUT = 10_000


def load(config: Config) -> Source:
    """Find 1.28 million training images, of which 10,000 are held out for validation, and 50,000 test images.

    The test images are the ones the authors call the validation set: the labels of their test set were never
    published. If there are fewer than 100,000 training images, a tenth of them is held out.

    Raises:
        UserError: the data set is not found.
    """
    root = find_root(Path(config.data), FOLDERS, "ImageNet", ADVICE)
    classes = tuple((root / "train").folders())
    train, test = (find_part(root / name, classes, LAYOUT) for name in ("train", "val"))
    spec = as_found(SPEC, classes, config.image_size, "ImageNet")
    return Source(spec, train, test, None, min(HELD_OUT, len(train) // 10))
