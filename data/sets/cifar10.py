"""CIFAR-10, read by torchvision, which downloads it on first use.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from args_helper import Config
from data.sets.torchvision_sets import load_fetched
from data.spec import DataSpec, Source

SPEC = DataSpec(
    shape=(3, 32, 32),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    pad=4,
    flip=True,
)
FILES = "cifar-10-python.tar.gz, or the folder cifar-10-batches-py that it unpacks to,"


def load(config: Config) -> Source:
    """Read 50,000 training images, of which 5,000 are held out for validation, and 10,000 test images.

    Raises:
        UserError: the data set is not found and cannot be downloaded.
    """
    return load_fetched("CIFAR10", SPEC, config, FILES)
