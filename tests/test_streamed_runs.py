"""Whole runs on streamed sets: stopped in a search on ImageNet's tree, and transferred to Caltech-101."""

import pytest
import torch
from conftest import SMALL, interrupted, same_bits, summary_of
from safetensors.torch import load_file
from small_sets import put_caltech, put_imagenet

from args_helper import parse_args
from trainers.notebook import Mined

OPTIONS = [*SMALL, *"--epochs 2 --fine_tune_epochs 1 --skip_sanity_checks --image_size 8 --batch_size 8".split()]


@pytest.fixture
def imagenet(tmp_path):
    put_imagenet(tmp_path / "data")
    return ["--dataset", "FfcvImageNet", "--data", tmp_path / "data"]


def test_a_network_is_transferred_to_caltech_with_a_fresh_last_layer(done, places, imagenet, trial, tmp_path):
    words = [*OPTIONS, *places, "--workers", 0]
    done(*words, *imagenet, "--save_model", "--name", "first")
    model, second = trial("first") / "model.safetensors", trial("second")
    put_caltech(tmp_path / "data", {"ant": 10, "bass": 10, "crab": 10})
    caltech = ["--dataset", "Caltech101", "--data", tmp_path / "data", "--pretrained", model]
    assert done(*words, *caltech, "--name", "second").err.count("the last layer stays as it was drawn") == 1
    assert summary_of(second)["classes"] == 3
    assert torch.equal(load_file(second / "ticket.safetensors")["state/conv1.weight"], load_file(model)["conv1.weight"])


def test_a_streamed_run_that_was_stopped_goes_on_to_the_same_bits(done, places, imagenet, trial):
    # A batch of two: 18 steps an epoch, so that the signal falls into the middle of one.
    words = [*OPTIONS, "--batch_size", 2, "--epochs", 3, "--skip_fine_tune", "--workers", 2, *imagenet, *places]
    done(*words, "--name", "whole")
    code, errors = interrupted("search 1/3", *words, "--name", "stopped")
    assert code == 143 and "Traceback" not in errors, errors
    done("--resume", trial("stopped"))
    assert same_bits(*(load_file(trial(name) / "ticket.safetensors") for name in ("stopped", "whole")))


def test_a_run_whose_images_a_gpu_decoded_is_loaded_and_exported_on_the_cpu(done, places, imagenet, trial, monkeypatch):
    done(*OPTIONS, *places, *imagenet, "--algo", "random", "--arch", "cResNet18", "--width", 0.1, "--name", "first")
    stored = trial("first") / "config.yml"
    stored.write_text(stored.read_text().replace("decode_on: cpu", "decode_on: cuda"))
    config = parse_args(["--resume", str(trial("first"))])
    assert config.decode_on == "cuda" and Mined(trial("first"), config).model.training is False
    monkeypatch.setattr("trainers.export.savings.SECONDS", 0.1)
    assert "model.onnx" in done("--resume", trial("first"), "--export").out
