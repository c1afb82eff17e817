"""The data sets themselves: what they hold, how they are divided, and what they declare without their files."""

import hashlib
import pickle
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

from args_helper import Config
from data import DATASETS, cifar, declared_spec, digits, load_data
from data.loader import divide
from data.spec import DataSpec, ImageSet, Source
from utils.errors import UserError


def digits_splits(**options):
    return load_data(Config(dataset="Digits", device="cpu", **options))


def everything_in(batches):
    """All images and labels of an evaluated split."""
    images, labels = zip(*batches)
    return torch.cat(images), torch.cat(labels)


def counted_rows(*sets):
    """The multiset of (pixels, label) over some ImageSets, in a form that can be compared."""
    rows = torch.cat([torch.cat([one.images.flatten(1).long(), one.labels[:, None]], 1) for one in sets])
    return torch.unique(rows, dim=0, return_counts=True)


# ---- Digits --------------------------------------------------------------------------------------------------------


def test_digits_has_its_1797_scans_in_three_parts():
    splits = digits_splits()
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (1294, 143, 360)


def test_digits_keeps_every_scan_with_its_label():
    source, scans = digits.load(Config()), load_digits()
    pixels = torch.from_numpy(np.rint(scans.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    expected = counted_rows(ImageSet(pixels, torch.from_numpy(scans.target)))
    for found, wanted in zip(counted_rows(source.train, source.test), expected):
        assert torch.equal(found, wanted)
    assert source.train.images.dtype == torch.uint8 and source.train.labels.dtype == torch.int64


def test_the_test_fifth_of_digits_is_stratified():
    labels = digits.load(Config()).test.labels
    shares = torch.bincount(labels).double() - 0.2 * torch.from_numpy(np.bincount(load_digits().target))
    assert len(labels) == 360
    assert shares.abs().max() < 1


@pytest.mark.parametrize("options", [{"seed": 7}, {"trial_num": 3}, {"use_full_data": True}], ids=str)
def test_the_test_part_of_digits_is_the_same_in_every_run(options):
    for found, wanted in zip(everything_in(digits_splits(**options).test), everything_in(digits_splits().test)):
        assert torch.equal(found, wanted)


def test_the_declared_statistics_of_digits_are_those_of_its_training_part():
    pixels = digits.load(Config()).train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(digits.SPEC.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(digits.SPEC.std[0], abs=1e-3)


def test_digits_are_neither_shifted_nor_mirrored():
    assert (digits.SPEC.pad, digits.SPEC.flip) == (0, False)


# ---- holding out a validation set ----------------------------------------------------------------------------------


def numbered(first, count):
    """Images of one pixel, each with its number as its label."""
    return ImageSet(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(first, first + count))


def divided(val=None, val_size=20, count=200, **options):
    source = Source(DataSpec((1, 1, 1), ("a",), (0.0,), (1.0,)), numbered(0, count), numbered(900, 5), val, val_size)
    return divide(source, Config(device="cpu", **options))


def test_validation_and_training_share_nothing_and_are_the_whole():
    splits = divided()
    train, val = splits.train.images.labels.tolist(), everything_in(splits.val)[1].tolist()
    assert len(val) == 20
    assert sorted(train + val) == list(range(200))


def test_the_same_seed_holds_out_the_same_images_and_another_seed_or_trial_others():
    def held_out(**options):
        return set(everything_in(divided(**options).val)[1].tolist())

    assert held_out(seed=5) == held_out(seed=5)
    assert held_out(seed=5, trial_num=2) == held_out(seed=10)
    assert len({frozenset(held_out(seed=seed)) for seed in range(1, 6)}) == 5


def test_every_part_of_the_training_set_may_be_held_out():
    drawn = torch.cat([everything_in(divided(seed=seed).val)[1] for seed in range(1, 101)])
    # A tenth in each of 100 draws: about 10 times each; 0 or 30 would be a draw that prefers some images.
    counts = torch.bincount(drawn, minlength=200)
    assert counts.min() >= 1 and counts.max() <= 25


def test_use_full_data_holds_nothing_out():
    splits = divided(use_full_data=True)
    assert splits.val is None
    assert splits.train.images.labels.tolist() == list(range(200))
    assert len(digits_splits(use_full_data=True).train.images) == 1437


def test_a_validation_set_of_the_data_sets_own_is_used_and_training_stays_whole():
    splits = divided(val=numbered(500, 7))
    assert everything_in(splits.val)[1].tolist() == list(range(500, 507))
    assert splits.train.images.labels.tolist() == list(range(200))
    assert divided(val=numbered(500, 7), use_full_data=True).val is None


def test_too_few_images_to_hold_any_out_leave_no_validation_set():
    splits = divided(count=9, val_size=0)
    assert splits.val is None
    assert len(splits.train.images) == 9


def test_every_part_moves_to_the_device():
    spec = DataSpec((1, 1, 1), ("a",), (0.0,), (1.0,))
    config = SimpleNamespace(use_full_data=False, effective_seed=1, torch_device="meta", batch_size=4)
    splits = divide(Source(spec, numbered(0, 20), numbered(900, 5), None, 2), config)
    for part in (splits.val, splits.test, splits.train.epoch(torch.Generator())):
        assert {tensor.device.type for batch in part for tensor in batch} == {"meta"}


# ---- CIFAR-10 ------------------------------------------------------------------------------------------------------


class FewImages:
    """Stands in for torchvision's CIFAR10: 5,040 and 10 images; image i has i's digits as its first two pixels."""

    def __init__(self, root, train, download):
        assert download
        self.root = root
        count = 5040 if train else 10
        self.data = np.zeros((count, 32, 32, 3), dtype=np.uint8)
        self.data[:, 0, 0, 0], self.data[:, 0, 1, 2] = np.arange(count) // 100, np.arange(count) % 100
        self.targets = [i % 10 for i in range(count)]


def number_of(images):
    return images[:, 0, 0, 0].long() * 100 + images[:, 2, 0, 1].long()


def test_cifar_holds_out_5000_training_images(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FewImages)
    splits = load_data(Config(dataset="CIFAR10", device="cpu"))
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (40, 5000, 10)
    full = load_data(Config(dataset="CIFAR10", device="cpu", use_full_data=True))
    numbers = number_of(full.train.images.images)
    assert full.val is None
    assert torch.equal(numbers, torch.arange(5040))
    assert torch.equal(full.train.images.labels, numbers % 10)
    assert torch.equal(splits.train.images.labels, number_of(splits.train.images.images) % 10)


def put_fake_cifar(folder, monkeypatch):
    """Write files as CIFAR-10 has them, three images each, and let torchvision take their checksums for the right ones.

    Every value of a pixel is 100 × channel + row; labels count from 0 in each file.
    """
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    image = (100 * np.arange(3)[:, None, None] + np.arange(32)[:, None] + np.zeros((3, 32, 32))).astype(np.uint8)

    def put(name, content):
        raw = pickle.dumps(content)
        (batches / name).write_bytes(raw)
        return name, hashlib.md5(raw).hexdigest()

    batch = {"data": np.stack([image.ravel()] * 3), "labels": [0, 1, 2]}
    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", [put(f"data_batch_{number}", batch) for number in range(1, 6)])
    monkeypatch.setattr(known, "test_list", [put("test_batch", batch)])
    name, checksum = put("batches.meta", {"label_names": list(cifar.SPEC.classes)})
    monkeypatch.setattr(known, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return torch.from_numpy(image)


@pytest.fixture
def offline(monkeypatch):
    def fail(*_args, **_options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.mark.usefixtures("offline")
def test_cifar_is_read_from_the_folder_of_the_data(tmp_path, monkeypatch):
    image = put_fake_cifar(tmp_path, monkeypatch)
    source = cifar.load(Config(dataset="CIFAR10", data=str(tmp_path)))
    assert source.train.images.shape == (15, 3, 32, 32) and source.train.images.dtype == torch.uint8
    assert torch.equal(source.train.images, image.expand(15, -1, -1, -1))
    assert source.train.labels.tolist() == [0, 1, 2] * 5
    assert source.test.labels.tolist() == [0, 1, 2]
    assert source.val is None


@pytest.mark.usefixtures("offline")
def test_cifar_without_files_and_without_a_network_is_one_clear_message(tmp_path):
    with pytest.raises(UserError) as raised:
        load_data(Config(dataset="CIFAR10", data=str(tmp_path / "nowhere"), device="cpu"))
    assert str(raised.value) == (
        f"CIFAR-10 is not in {tmp_path}/nowhere and cannot be downloaded (<urlopen error no route to host>); put "
        f"cifar-10-python.tar.gz, or the folder cifar-10-batches-py that it unpacks to, into {tmp_path}/nowhere, or "
        "name the folder that has it with --data"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("File not found or corrupted."), PermissionError(13, "denied")], ids=str
)
def test_cifar_says_why_it_cannot_be_had(error, monkeypatch):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=r"CIFAR-10 is not in .*(corrupted|denied).*--data"):
        load_data(Config(dataset="CIFAR10", device="cpu"))


def test_cifar_is_augmented_as_published():
    assert (cifar.SPEC.shape, cifar.SPEC.pad, cifar.SPEC.flip) == ((3, 32, 32), 4, True)
    assert len(cifar.SPEC.classes) == len(set(cifar.SPEC.classes)) == 10


# ---- the table -----------------------------------------------------------------------------------------------------


def put_image_folder(folder, monkeypatch):
    for place in ("train/one", "train/two", "test/one"):
        (folder / place).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / place / "image.png")


PREPARED = {
    "Digits": lambda folder, monkeypatch: None,
    "CIFAR10": lambda folder, monkeypatch: monkeypatch.setattr(torchvision.datasets, "CIFAR10", FewImages),
    "ImageFolder": put_image_folder,
}
"""Data set -> what puts a few of its images where it looks for them."""


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_data_set_of_the_table_loads_by_its_name_and_keeps_what_it_declares(name, tmp_path, monkeypatch):
    PREPARED[name](tmp_path, monkeypatch)
    splits = load_data(Config(dataset=name, data=str(tmp_path), device="cpu", batch_size=4))
    images, labels = next(splits.train.epoch(torch.Generator()))
    spec = splits.spec
    assert images.shape[1:] == spec.shape and images.dtype == torch.float32
    assert labels.min() >= 0 and labels.max() < len(spec.classes)
    assert len(spec.mean) == len(spec.std) == spec.shape[0]
    assert min(spec.std) > 0
    assert import_module(DATASETS[name]).SPEC in (None, spec)


@pytest.mark.parametrize(("name", "shape"), [("Digits", (1, 8, 8)), ("CIFAR10", (3, 32, 32))])
@pytest.mark.usefixtures("offline")
def test_a_spec_is_declared_without_files(name, shape):
    spec = declared_spec(name)
    assert spec.shape == shape
    assert len(spec.classes) == 10


def test_an_image_folder_declares_nothing_before_it_is_read():
    with pytest.raises(UserError, match="images of dataset ImageFolder is known only once they are read"):
        declared_spec("ImageFolder")


def test_listing_the_data_sets_imports_neither_torch_nor_a_data_set():
    code = "import sys, data; print(sorted(m for m in sys.modules if m == 'torch' or m.startswith('data.')))"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
