"""Whole runs on streamed sets: stopped in a search on ImageNet's tree, and transferred to Caltech-101."""

import json
import signal
import time

import pytest
import torch
from conftest import SMALL, same_bits, start
from safetensors.torch import load_file
from small_sets import put_caltech, put_imagenet

OPTIONS = [*SMALL, *"--epochs 2 --fine_tune_epochs 1 --skip_sanity_checks --image_size 8 --batch_size 8".split()]


@pytest.fixture
def imagenet(tmp_path):
    put_imagenet(tmp_path / "data")
    return ["--dataset", "FfcvImageNet", "--data", tmp_path / "data"]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def ticket_of(folder):
    return load_file(folder / "ticket.safetensors")


def test_a_network_is_transferred_to_caltech_with_a_fresh_last_layer(call, places, imagenet, tmp_path):
    words = [*OPTIONS, *places, "--workers", 0]
    assert call(*words, *imagenet, "--save_model", "--name", "first").code == 0
    model = tmp_path / "results" / "first" / "trial_1" / "model.safetensors"
    put_caltech(tmp_path / "data", {"ant": 10, "bass": 10, "crab": 10})
    caltech = ["--dataset", "Caltech101", "--data", tmp_path / "data", "--pretrained", model]
    outcome = call(*words, *caltech, "--name", "second")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("the last layer stays as it was drawn") == 1
    second = tmp_path / "results" / "second" / "trial_1"
    assert summary_of(second)["classes"] == 3
    assert torch.equal(ticket_of(second)["state/conv1.weight"], load_file(model)["conv1.weight"])


def test_a_streamed_run_that_was_stopped_goes_on_to_the_same_bits(call, places, imagenet, tmp_path):
    # A batch of two: 18 steps an epoch, so that the signal falls into the middle of one.
    words = [*OPTIONS, "--batch_size", 2, "--epochs", 3, "--skip_fine_tune", "--workers", 2, *imagenet, *places]
    assert call(*words, "--name", "whole").code == 0
    process = start(*words, "--name", "stopped")
    folder = tmp_path / "results" / "stopped" / "trial_1"
    while process.poll() is None and not (folder / "acc_and_sparsity.csv").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert call("--resume", folder).code == 0
    assert same_bits(ticket_of(folder), ticket_of(tmp_path / "results" / "whole" / "trial_1"))
