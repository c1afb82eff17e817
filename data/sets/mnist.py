"""MNIST: handwritten digits, 28×28, grey; read by torchvision, which downloads it on first use.

Source: Y. LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
"""

from __future__ import annotations

from args_helper import Config
from data.sets.torchvision_sets import load_fetched
from data.spec import DataSpec, Source

# No padding: its makers centred every digit by mass, in the test part too, so that no shift is left to learn.
SPEC = DataSpec(shape=(1, 28, 28), classes=tuple("0123456789"), mean=(0.1307,), std=(0.3081,))
FILES = "the folder MNIST/raw with {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not,"


def load(config: Config) -> Source:
    """60,000 images for training, of which 5,000 are for validation, and 10,000 for testing.

    Raises:
        UserError: it is not there and cannot be downloaded.
    """
    return load_fetched("MNIST", SPEC, config, FILES)
