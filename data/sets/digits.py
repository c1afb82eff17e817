"""Digits: 1,797 real scans of handwritten digits, 8×8, grey; they come with scikit-learn, nothing is downloaded.

Source: E. Alpaydin, C. Kaynak, UCI "Optical Recognition of Handwritten Digits", test part.
"""

from __future__ import annotations

import torch

from args_helper import Config
from data.spec import DataSpec, ImageSet, Source

# Eight pixels leave no room for a crop, and a mirrored 2 is not a digit. The statistics are the training split's.
SPEC = DataSpec(shape=(1, 8, 8), classes=tuple("0123456789"), mean=(0.3049,), std=(0.3761,))
# The test split is the same for every seed, so that the accuracies of all trials are measured on the same images.
TEST_SEED = 0


def load(_config: Config) -> Source:
    """Read four fifths for training, a tenth of them for validation, and a fifth, stratified by class, for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()  # images (1797, 8, 8) of whole numbers from 0 to 16
    images = torch.from_numpy(scans.images / 16.0 * 255.0).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(scans.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=scans.target, random_state=TEST_SEED)
    everything = ImageSet(images, labels)
    return Source(
        SPEC, everything.subset(torch.tensor(train)), everything.subset(torch.tensor(test)), None, len(train) // 10
    )
