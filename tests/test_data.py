"""The data sets themselves: what they hold, how they are divided, and what they declare without their files."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small_sets import put_caltech, put_cifar, put_imagenet, put_images, put_mnist, put_tiny_imagenet

from args_helper import Config
from data import DATASETS
from data.load import declared_spec, divide, load_data
from data.sets import digits
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


# ---- the table -----------------------------------------------------------------------------------------------------


PREPARED = {
    "Digits": lambda folder, monkeypatch: None,
    "MNIST": lambda folder, monkeypatch: put_mnist(folder),
    "CIFAR10": lambda folder, monkeypatch: put_cifar(folder, "CIFAR10", monkeypatch),
    "CIFAR100": lambda folder, monkeypatch: put_cifar(folder, "CIFAR100", monkeypatch),
    "TinyImageNet": lambda folder, monkeypatch: put_tiny_imagenet(folder),
    "ImageNet": lambda folder, monkeypatch: put_imagenet(folder),
    "Caltech101": lambda folder, monkeypatch: put_caltech(folder, {"ant": 5, "bass": 6}),
    "ImageFolder": lambda folder, monkeypatch: put_images(folder, {"train/one": 1, "train/two": 1, "test/one": 1}),
}
"""Data set -> what puts a few of its images where it looks for them."""


@pytest.mark.parametrize("name", sorted(DATASETS))
@pytest.mark.filterwarnings("ignore:.* classes, but 2 were found")
@pytest.mark.usefixtures("offline")
def test_every_data_set_of_the_table_loads_by_its_name_and_keeps_what_it_declares(name, tmp_path, monkeypatch):
    PREPARED[name](tmp_path, monkeypatch)
    # All images: where a set holds a fixed number out, there are fewer than that in the test's.
    splits = load_data(
        Config(dataset=name, data=str(tmp_path), device="cpu", workers=0, batch_size=4, use_full_data=True)
    )
    images, labels = next(splits.train.epoch(torch.Generator()))
    spec = splits.spec
    assert images.shape[1:] == spec.shape and images.dtype == torch.float32
    assert labels.min() >= 0 and labels.max() < len(spec.classes)
    assert len(spec.mean) == len(spec.std) == spec.shape[0]
    assert min(spec.std) > 0
    declared = import_module(DATASETS[name]).SPEC
    # Where classes are folders, the test has fewer than the set.
    assert declared is None or replace(declared, classes=spec.classes) == spec


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("Digits", (1, 8, 8), 10),
        ("MNIST", (1, 28, 28), 10),
        ("CIFAR10", (3, 32, 32), 10),
        ("CIFAR100", (3, 32, 32), 100),
        ("TinyImageNet", (3, 64, 64), 200),
        ("ImageNet", (3, 224, 224), 1000),
        ("Caltech101", (3, 224, 224), 101),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_spec_is_declared_without_files(name, shape, classes):
    spec = declared_spec(name)
    assert spec.shape == shape
    assert len(spec.classes) == len(set(spec.classes)) == classes


def test_an_image_folder_declares_nothing_before_it_is_read():
    with pytest.raises(UserError, match="images of dataset ImageFolder is known only once they are read"):
        declared_spec("ImageFolder")


def test_listing_the_data_sets_imports_neither_torch_nor_a_data_set():
    code = "import sys, data; print(sorted(m for m in sys.modules if m == 'torch' or m.startswith('data.')))"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
