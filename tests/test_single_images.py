"""A network whose BatchNorm has maps of one pixel never sees one image alone, whatever the batches and their parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_sets import put_images

from tests.conftest import SMALL, Outcome, read_rows

Call = Callable[..., Outcome]
# Digits are 8×8, and ResNet-18 divides that by 8.
ONE_PIXEL = [*SMALL, "--arch", "ResNet18", "--width", "0.05", "--epochs", "1"]
TRAINING = [*ONE_PIXEL, "--algo", "training"]


@pytest.mark.parametrize(
    "words",
    [
        ["--batch_size", "431"],  # three such batches, and one image
        ["--batch_size", "64", "--accumulate", "13"],  # the last batch has 14 images
        ["--algo", "grasp", "--score_parts", "100", "--skip_fine_tune"],  # 10 images of every class
        ["--algo", "snip", "--score_parts", "256", "--skip_fine_tune"],
    ],
    ids=str,
)
def test_no_part_of_a_batch_is_a_single_image(words, call, places):
    outcome = call(*TRAINING, *words, *places)
    assert outcome.code == 0, outcome.err


def test_a_batch_of_one_in_a_streamed_set_is_joined_to_the_one_before(call, places, tmp_path):
    put_images(tmp_path / "data" / "imagenet", {"train/a": 6, "train/b": 5, "val/a": 2, "val/b": 2}, ending="JPEG")
    words = ["--dataset", "ImageNet", "--data", tmp_path / "data", "--image_size", "8", "--workers", "0"]
    outcome = call(*TRAINING, *words, "--use_full_data", "--batch_size", "5", *places)
    assert outcome.code == 0, outcome.err
    assert len(read_rows(tmp_path / "results" / "trial_1" / "acc_and_sparsity.csv")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--batch_size 1", "batch_size 1: this network has a BatchNorm on maps of 1×1 pixels"),
        ("--batch_size 1 --dry_run", "batch_size 1: this network has a BatchNorm on maps of 1×1 pixels"),
        ("--dataset ImageFolder --use_full_data", "a training set of one image: this network has a BatchNorm"),
    ],
)
def test_training_on_single_images_is_refused_at_the_start(words, said, call, places, tmp_path):
    put_images(tmp_path / "images", {"train/a": 1, "test/a": 1})
    outcome = call(*TRAINING, "--data", tmp_path / "images", *words.split(), *places)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(f"error: {said}")
    assert not (tmp_path / "results").exists()


def test_a_network_that_can_train_on_one_image_may(call, places, tmp_path):
    put_images(tmp_path / "images", {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1})
    words = ["--dataset", "ImageFolder", "--data", tmp_path / "images", "--use_full_data", "--batch_size", "1"]
    outcome = call(*SMALL, *words, "--algo", "training", "--epochs", "1", *places)
    assert outcome.code == 0, outcome.err
