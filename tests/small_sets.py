"""A few images of every data set, in the files and folders that it really comes in."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import torchvision.datasets
from PIL import Image

CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", [f"data_batch_{number}" for number in range(1, 6)], "test_batch", "labels"),
    "CIFAR100": ("cifar-100-python", ["train"], "test", "fine_labels"),
}
"""Name -> folder, files for training, file for testing, key of the labels."""


def put_cifar(root, name, monkeypatch):
    """Write a CIFAR of three images a file, and let torchvision take its checksums for the right ones.

    Every value of a pixel is 100 × channel + row, modulo 256; labels count from 0 in each file. Returns the image.
    """
    folder, train, test, key = CIFAR[name]
    (root / folder).mkdir(parents=True)
    image = (100 * np.arange(3)[:, None, None] + np.arange(32)[:, None] + np.zeros((3, 32, 32))).astype(np.uint8)

    def put(file, content):
        raw = pickle.dumps(content)
        (root / folder / file).write_bytes(raw)
        return file, hashlib.md5(raw).hexdigest()

    batch = {"data": np.stack([image.ravel()] * 3), key: [0, 1, 2]}
    known = getattr(torchvision.datasets, name)
    monkeypatch.setattr(known, "train_list", [put(file, batch) for file in train])
    monkeypatch.setattr(known, "test_list", [put(test, batch)])
    about = {"filename": known.meta["filename"], "key": known.meta["key"]}
    _, checksum = put(about["filename"], {about["key"]: []})
    monkeypatch.setattr(known, "meta", {**about, "md5": checksum})
    return image


def put_mnist(root, train=6, test=3, zipped=False):
    """Write the four idx files. Image i has i as its first pixel and i + 1 as its last; its label is i modulo 10."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        pixels = np.zeros((count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0], pixels[:, -1, -1] = np.arange(count), np.arange(count) + 1
        labels = (np.arange(count) % 10).astype(np.uint8)
        # A magic number that tells type (8: unsigned byte) and dimensions, the dimensions, the values.
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + labels.tobytes(),
        }
        for name, raw in files.items():
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


def put_images(root, counts, size=(8, 8), ending="png"):
    """Write so many images into each folder, of random colours that tell them apart; size is (width, height)."""
    draw = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = tuple(int(value) for value in draw.integers(0, 256, 3))
            Image.new("RGB", size, colour).save(root / folder / f"{number}.{ending}")
