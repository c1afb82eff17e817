"""The data sets themselves: what they hold, how they are divided, and what they declare without their files."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROJECT, same_bits
from sklearn.datasets import load_digits
from small_sets import put_caltech, put_cifar, put_imagenet, put_images, put_mnist, put_tiny_imagenet
from toys import complaint, whole

from args_helper import Config
from data import DATASETS
from data.load import declared_spec, divide, load_data
from data.sets import digits
from data.spec import DataSpec, ImageSet, Source


def digits_splits(**options):
    return load_data(Config(dataset="Digits", device="cpu", **options))


def counted_rows(*sets):
    """The multiset of (pixels, label) over some ImageSets, in a form that can be compared."""
    rows = torch.cat([torch.cat([one.images.flatten(1).long(), one.labels[:, None]], 1) for one in sets])
    return torch.unique(rows, dim=0, return_counts=True)


# ---- Digits --------------------------------------------------------------------------------------------------------


def test_digits_keeps_every_scan_with_its_label_in_three_parts():
    source, scans = digits.load(Config()), load_digits()
    pixels = torch.from_numpy(np.rint(scans.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    expected = counted_rows(ImageSet(pixels, torch.from_numpy(scans.target)))
    assert same_bits(counted_rows(source.train, source.test), expected)
    assert source.train.images.dtype == torch.uint8 and source.train.labels.dtype == torch.int64
    splits = digits_splits()
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (1294, 143, 360)


def test_the_test_fifth_of_digits_is_stratified():
    labels = digits.load(Config()).test.labels
    shares = torch.bincount(labels).double() - 0.2 * torch.from_numpy(np.bincount(load_digits().target))
    assert shares.abs().max() < 1


@pytest.mark.parametrize("options", [{"seed": 7}, {"trial_num": 3}, {"use_full_data": True}], ids=str)
def test_the_test_part_of_digits_is_the_same_in_every_run(options):
    assert same_bits(whole(digits_splits(**options).test), whole(digits_splits().test))


def test_the_declared_statistics_of_digits_are_those_of_its_training_part():
    pixels = digits.load(Config()).train.images.double() / 255
    found = [pixels.mean().item(), pixels.std().item()]
    assert [*digits.SPEC.mean, *digits.SPEC.std] == pytest.approx(found, abs=1e-3)
    assert (digits.SPEC.pad, digits.SPEC.flip) == (0, False)


# ---- holding out a validation set ----------------------------------------------------------------------------------


def numbered(first, count):
    """Images of one pixel, each with its number as its label."""
    return ImageSet(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(first, first + count))


def divided(val=None, val_size=20, count=200, **options):
    source = Source(DataSpec((1, 1, 1), ("a",), (0.0,), (1.0,)), numbered(0, count), numbered(900, 5), val, val_size)
    return divide(source, Config(device="cpu", **options))


def numbers_in(batches):
    return whole(batches)[1].tolist()


def test_validation_and_training_share_nothing_and_are_the_whole():
    splits = divided()
    assert len(splits.val) == 20
    assert sorted(splits.train.images.labels.tolist() + numbers_in(splits.val)) == list(range(200))


def test_the_same_seed_holds_out_the_same_images_and_another_seed_or_trial_others():
    def held_out(**options):
        return frozenset(numbers_in(divided(**options).val))

    assert held_out(seed=5) == held_out(seed=5)
    assert held_out(seed=5, trial_num=2) == held_out(seed=10)
    assert len({held_out(seed=seed) for seed in range(1, 6)}) == 5


def test_every_part_of_the_training_set_may_be_held_out():
    drawn = torch.cat([whole(divided(seed=seed).val)[1] for seed in range(1, 101)])
    # A tenth in each of 100 draws: about 10 times each; 0 or 30 would be a draw that prefers some images.
    counts = torch.bincount(drawn, minlength=200)
    assert counts.min() >= 1 and counts.max() <= 25


@pytest.mark.parametrize("own", [None, numbered(500, 7)], ids=["held out", "its own"])
def test_use_full_data_holds_nothing_out(own):
    splits = divided(val=own, use_full_data=True)
    assert splits.val is None
    assert splits.train.images.labels.tolist() == list(range(200))


def test_a_validation_set_of_the_data_sets_own_is_used_and_training_stays_whole():
    splits = divided(val=numbered(500, 7))
    assert numbers_in(splits.val) == list(range(500, 507))
    assert splits.train.images.labels.tolist() == list(range(200))


def test_too_few_images_to_hold_any_out_leave_no_validation_set():
    splits = divided(count=9, val_size=0)
    assert splits.val is None and len(splits.train.images) == 9


def test_every_part_moves_to_the_device():
    spec = DataSpec((1, 1, 1), ("a",), (0.0,), (1.0,))
    config = SimpleNamespace(use_full_data=False, effective_seed=1, torch_device="meta", batch_size=4, decode_on="cpu")
    splits = divide(Source(spec, numbered(0, 20), numbered(900, 5), None, 2), config)
    for part in (splits.val, splits.test, splits.train.epoch(torch.Generator())):
        assert {tensor.device.type for batch in part for tensor in batch} == {"meta"}


@pytest.mark.filterwarnings("ignore:ImageNet has 1000 classes")
@pytest.mark.parametrize(
    ("dataset", "reason"), [("Digits", "Digits is held in memory"), ("ImageNet", "the device is cpu")]
)
def test_images_are_decoded_on_a_gpu_only_where_there_is_one_and_images_to_decode(tmp_path, dataset, reason):
    put_imagenet(tmp_path)
    said = complaint(load_data, Config(dataset=dataset, data=str(tmp_path), device="cpu", decode_on="cuda"))
    assert said.startswith("decode_on: cuda decodes images on the GPU") and reason in said


# ---- the table -----------------------------------------------------------------------------------------------------


TABLE = {
    "Digits": (lambda folder, _: None, (1, 8, 8), 10),
    "MNIST": (lambda folder, _: put_mnist(folder), (1, 28, 28), 10),
    "CIFAR10": (lambda folder, monkeypatch: put_cifar(folder, "CIFAR10", monkeypatch), (3, 32, 32), 10),
    "CIFAR100": (lambda folder, monkeypatch: put_cifar(folder, "CIFAR100", monkeypatch), (3, 32, 32), 100),
    "TinyImageNet": (lambda folder, _: put_tiny_imagenet(folder), (3, 64, 64), 200),
    "ImageNet": (lambda folder, _: put_imagenet(folder), (3, 224, 224), 1000),
    "Caltech101": (lambda folder, _: put_caltech(folder, {"ant": 5, "bass": 6}), (3, 224, 224), 101),
    "ImageFolder": (lambda folder, _: put_images(folder, dict.fromkeys(["train/a", "train/b", "test/a"], 1)), None, 0),
}
"""Data set -> what puts a few of its images where it looks for them; its shape and number of classes, if declared."""


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.filterwarnings("ignore:.* classes, but 2 were found")
@pytest.mark.usefixtures("offline")
def test_every_data_set_declares_a_spec_without_files_and_keeps_to_it_when_loaded(name, tmp_path, monkeypatch):
    prepare, shape, classes = TABLE[name]
    declared = import_module(DATASETS[name]).SPEC
    if shape:
        assert declared_spec(name) == declared
        assert (declared.shape, len(declared.classes), len(set(declared.classes))) == (shape, classes, classes)
    prepare(tmp_path, monkeypatch)
    # All images: where a set holds a fixed number out, there are fewer than that in the test's.
    options = {"data": str(tmp_path), "device": "cpu", "workers": 0, "batch_size": 4, "use_full_data": True}
    splits = load_data(Config(dataset=name, **options))
    images, labels = next(splits.train.epoch(torch.Generator()))
    spec = splits.spec
    assert images.shape[1:] == spec.shape and images.dtype == torch.float32
    assert labels.min() >= 0 and labels.max() < len(spec.classes)
    assert len(spec.mean) == len(spec.std) == spec.shape[0] and min(spec.std) > 0
    # Where classes are folders, the test has fewer than the set.
    assert declared is None or replace(declared, classes=spec.classes) == spec


def test_listing_options_and_data_sets_imports_neither_torch_nor_a_data_set():
    code = "import sys, args_helper, data; print([m for m in sys.modules if m == 'torch' or m.startswith('data.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
