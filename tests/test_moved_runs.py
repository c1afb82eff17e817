"""A run that was stopped, and moved: to another name, another machine, its data elsewhere."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, interrupted, same_bits, summary_of, timeless
from small_sets import put_images

SHORT = [*SMALL, "--epochs", "3", "--skip_sanity_checks"]


@pytest.fixture
def begun(places, tmp_path):
    """The folder of a run of two trials on digits, stopped in the first and renamed."""
    assert interrupted("search 1/", *SHORT, "--num_trial", "2", "--name", "moved", *places)[0] == 143
    return (tmp_path / "results" / "moved" / "trial_1").rename(tmp_path / "results" / "moved" / "renamed")


def test_a_run_that_was_moved_goes_on_with_its_images_elsewhere_to_the_same_bits(done, refusal, places, tmp_path):
    put_images(tmp_path / "images", {"train/a": 30, "train/b": 30, "test/a": 5, "test/b": 5})
    words = [*SHORT, "--dataset", "ImageFolder", "--data", tmp_path / "images", "--batch_size", "8", *places]
    done(*words, "--name", "whole")
    assert interrupted("search 1/", *words, "--name", "half")[0] == 143
    results, elsewhere = tmp_path / "results", tmp_path / "other" / "machine"
    shutil.move(results / "half" / "trial_1", elsewhere / "renamed")
    shutil.move(tmp_path / "images", elsewhere / "data")
    places = ["--results_dir", elsewhere / "results", "--log_dir", elsewhere / "runs"]
    one, away = next((elsewhere / "data" / "train" / "a").iterdir()), elsewhere / "away"
    one.rename(away)
    said = refusal("--resume", elsewhere / "renamed", "--data", elsewhere / "data", *places)
    assert "was begun with other images: {'train': 54, 'val': 6, 'test': 10}, now {'train': 54, 'val': 5," in said
    away.rename(one)
    for name, other in (("a", "c"), ("c", "a")):  # the classes keep their images, and their labels change
        for split in ("train", "test"):
            (elsewhere / "data" / split / name).rename(elsewhere / "data" / split / other)
        if other == "c":
            said = refusal("--resume", elsewhere / "renamed", "--data", elsewhere / "data", *places)
            assert "was begun with other images: images of 3×8×8 in 2 classes (" in said
    outcome = done("--resume", elsewhere / "renamed", "--data", elsewhere / "data", *places)
    assert "search 1/3" not in outcome.out  # it went on, and did not begin anew
    assert f"the images in {elsewhere / 'data'} have to be those of {tmp_path / 'images'}" in outcome.err
    assert same_bits(timeless(elsewhere / "renamed"), timeless(results / "whole" / "trial_1"))
    assert summary_of(elsewhere / "renamed")["classes"] == 2
    assert {path.name for path in elsewhere.iterdir()} == {"renamed", "data", "runs", "trials.json"}
    assert json.loads((elsewhere / "trials.json").read_text())["trials"] == [1]
    assert "is finished: nothing to do" in done("--resume", elsewhere / "renamed").out


def test_a_renamed_run_goes_on_where_it_is_and_later_trials_beside_it(begun, done):
    done("--resume", begun)
    assert {path.name for path in begun.parent.iterdir()} == {"renamed", "trial_2", "trials.json"}
    trials = [summary_of(begun.with_name(name))["trial"] for name in ("renamed", "trial_2")]
    assert trials == json.loads((begun.parent / "trials.json").read_text())["trials"] == [1, 2]


def test_a_later_trial_does_not_take_the_folder_of_another(begun, refusal):
    called_as_the_second = begun.rename(begun.with_name("trial_2"))
    said = "trial_2 holds another experiment, which differs in: trial_num 1 → 2; move it away"
    for words in ([], ["--resume_anyway"]):
        assert said in refusal("--resume", called_as_the_second, *words)
    assert summary_of(called_as_the_second)["trial"] == 1


def test_a_stored_device_that_is_not_there_names_the_flag_to_add(begun, done, refusal, monkeypatch):
    stored = begun / "config.yml"
    stored.write_text(stored.read_text().replace("device: cpu", "device: cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal("--resume", begun) == "error: device cuda: there is no GPU number 0 here; give --device cpu\n"
    done("--resume", begun, "--device", "cpu", "--num_trial", "1")
    assert (begun / "summary.json").is_file()
