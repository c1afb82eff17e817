"""Write a few images of every data set, in the files and folders of the real one."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import torch
import torchvision.datasets
from PIL import Image

CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", [f"data_batch_{number}" for number in range(1, 6)], "test_batch", "labels"),
    "CIFAR100": ("cifar-100-python", ["train"], "test", "fine_labels"),
}
"""Name -> folder, training files, test file, key of the labels."""


def put_cifar(root, name, monkeypatch):
    """Write a CIFAR with three images per file, and make torchvision accept its checksums.

    Every pixel value is 100 × channel + row, modulo 256; labels count from 0 in each file. Returns the image.
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
        # A magic number for type (8: unsigned byte) and number of dimensions, then the dimensions, then the values.
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 0x801, count) + labels.tobytes(),
        }
        for name, raw in files.items():
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


def put_images(root, counts, size=(8, 8), ending="png"):
    """Write this many images into each folder, each of one random colour; size is (width, height)."""
    draw = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = tuple(int(value) for value in draw.integers(0, 256, 3))
            Image.new("RGB", size, colour).save(root / folder / f"{number}.{ending}")


def put_tiny_imagenet(root, classes=2, train=10, val=3, original=False):
    """Write Tiny ImageNet as the script arranges it, or (`original`) as its archive does; return its folder."""
    folder, names = root / "tiny-imagenet-200", [f"n0000000{number}" for number in range(classes)]
    put_images(folder, {f"train/{name}{'/images' if original else ''}": train for name in names}, (64, 64), "JPEG")
    if not original:
        put_images(folder, dict.fromkeys((f"val/{name}" for name in names), val), (64, 64), "JPEG")
        return folder
    put_images(folder, {"val/images": classes * val, "test/images": 2}, (64, 64), "JPEG")
    (folder / "wnids.txt").write_text("".join(f"{name}\n" for name in reversed(names)))
    for name in names:
        (folder / "train" / name / f"{name}_boxes.txt").write_text("0.JPEG\t0\t0\t63\t63\n")
    lines = [f"{number}.JPEG\t{names[number % classes]}\t0\t0\t63\t63\n" for number in range(classes * val)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def put_imagenet(root, classes=2, train=20, val=5):
    """Write ImageNet in the layout for training, with images of two sizes; return its folder."""
    folder = root / "imagenet"
    names = [f"n0000000{number}" for number in range(classes)]
    put_images(folder, {f"train/{name}": train for name in names}, (40, 30), "JPEG")
    put_images(folder, {f"val/{name}": val for name in names}, (30, 50), "JPEG")
    return folder


def put_caltech(root, counts):
    """Write Caltech-101 as torchvision unpacks it, with `counts` images of each class; return its folder."""
    folder = root / "caltech101" / "101_ObjectCategories"
    put_images(folder, {**counts, "BACKGROUND_Google": 3}, (40, 30), "jpg")
    return folder


def put_noise(root, count, size=(32, 24)):
    """Write images in which every crop and every flip is seen; return their names."""
    draw = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(count)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(root / name)
    return names


def put(path, pixels, **options):
    """Write pixels, (height, width[, channels]) uint8 or a PIL image, as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def drawn(seed, height=4, width=4):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put_tree(root, splits=("train", "test"), each=2, height=4, width=4):
    """`each` images in either of two classes in every split; returns their pixels as load gives them, by split."""
    pixels = {}
    for split in splits:
        names = [f"{split}/{name}/{number}.png" for name in ("cat", "dog") for number in range(each)]
        images = [drawn(len(pixels) * 100 + seed, height, width) for seed in range(len(names))]
        for name, image in zip(names, images):
            put(root / name, image)
        pixels[split] = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels
