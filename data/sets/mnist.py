"""MNIST: handwritten digits, 28×28, grey; read by torchvision, which downloads it on first use.

Source: Y. LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
"""

from __future__ import annotations

from args_helper import Config
from data.sets.torchvision_sets import load_fetched
from data.spec import DataSpec, Source

# No padding: the authors centred every digit by mass, test digits too, so random shifts teach nothing.
SPEC = DataSpec(shape=(1, 28, 28), classes=tuple("0123456789"), mean=(0.1307,), std=(0.3081,))
FILES = "the folder MNIST/raw with {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not,"


def load(config: Config) -> Source:
    """Read 60,000 training images, of which 5,000 are held out for validation, and 10,000 test images.

    Raises:
        UserError: the data set is not found and cannot be downloaded.
    """
    return load_fetched("MNIST", SPEC, config, FILES)
