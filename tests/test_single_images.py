"""A network whose BatchNorm has maps of one pixel never sees one image alone, whatever the batches and their parts."""

import pytest
from small_sets import put_images

from tests.conftest import SMALL, read_rows

# Digits are 8×8, and ResNet-18 divides that by 8.
TRAINING = "--arch ResNet18 --width 0.05 --epochs 1 --algo training".split()


@pytest.mark.parametrize(
    "words",
    ["--batch_size 431",  # three such batches, and one image
     "--batch_size 64 --accumulate 13",  # the last batch has 14 images
     "--algo grasp --score_parts 100 --skip_fine_tune",  # 10 images of every class
     "--algo snip --score_parts 256 --skip_fine_tune"],
)  # fmt: skip
def test_no_part_of_a_batch_is_a_single_image(words, ran):
    ran(*TRAINING, *words.split())


def test_a_batch_of_one_in_a_streamed_set_is_joined_to_the_one_before(ran, tmp_path):
    put_images(tmp_path / "data" / "imagenet", {"train/a": 6, "train/b": 5, "val/a": 2, "val/b": 2}, ending="JPEG")
    words = ["--dataset", "ImageNet", "--data", tmp_path / "data", "--image_size", "8", "--workers", "0"]
    folder = ran(*TRAINING, *words, "--use_full_data", "--batch_size", "5")
    assert len(read_rows(folder / "acc_and_sparsity.csv")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [("--batch_size 1", "batch_size 1: this network has a BatchNorm on maps of 1×1 pixels"),
     ("--batch_size 1 --dry_run", "batch_size 1: this network has a BatchNorm on maps of 1×1 pixels"),
     ("--dataset ImageFolder --use_full_data", "a training set of one image: this network has a BatchNorm")],
)  # fmt: skip
def test_training_on_single_images_is_refused_at_the_start(words, said, refusal, places, tmp_path):
    put_images(tmp_path / "images", {"train/a": 1, "train/b": 0, "test/a": 1})
    told = refusal(*SMALL, *TRAINING, "--data", tmp_path / "images", *words.split(), *places)
    assert told.splitlines()[-1].startswith(f"error: {said}") and told.count("error") == 1
    assert not (tmp_path / "results").exists()


def test_a_network_that_can_train_on_one_image_may(ran, tmp_path):
    put_images(tmp_path / "images", {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1})
    words = ["--dataset", "ImageFolder", "--data", tmp_path / "images", "--use_full_data", "--batch_size", "1"]
    ran(*words, "--algo", "training", "--epochs", "1")
