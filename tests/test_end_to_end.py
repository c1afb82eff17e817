"""Whole runs through `main.py`: what they leave behind, what they say, and that none is ever lost."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import PROJECT, SMALL, interrupted, raising, read_rows, same_bits, script, start, summary_of, timeless
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from args_helper import OPTIONS, parse_args
from data.load import declared_spec
from data.spec import DataSpec
from models.build import build_model
from models.masking import prunable_parameters
from trainers.algorithms.smart_ratio import layer_counts
from trainers.tickets.file import read_ticket
from utils.masks import is_bias, remaining

CHECKS = ("weight_reinit", "mask_shuffle", "weight_shuffle")
COLUMNS = [
    "phase", "epoch", "lr", "test_acc_before_rounding", "test_acc", "val_acc", "train_acc", "train_loss",
    "regularization_loss", "model_sparsity", "seconds", "lmbda", "threshold",
]  # fmt: skip


# ---- what a run leaves behind --------------------------------------------------------------------------------------


def test_tables_have_a_row_for_every_epoch(finished):
    rows = read_rows(finished / "acc_and_sparsity.csv")
    assert list(rows[0]) == COLUMNS
    epochs = [row["phase"] + row["epoch"] for row in rows]
    assert epochs == ["search0", "search1", "search2", "search3", "finetune0", "finetune1"]
    for check in CHECKS:
        assert [row["phase"] for row in read_rows(finished / f"acc_and_sparsity_{check}.csv")] == [f"check/{check}"] * 2


def test_summary_agrees_with_the_ticket_the_tables_and_the_stored_config(finished):
    summary, (ticket, _) = summary_of(finished), read_ticket(finished / "ticket.safetensors")
    kept, whole = map(sum, zip(*summary["layers"].values()))
    *_, last = (row for row in read_rows(finished / "acc_and_sparsity.csv") if row["phase"] == "finetune")
    config = parse_args(["--config", str(finished / "config.yml")])
    assert summary["weights_remaining"] == kept == remaining(ticket.masks)
    expected = {
        "weights_total": whole, "gem_weights_remaining": remaining(ticket.gem), "config_hash": config.config_hash,
        "test_acc_after_finetune": float(last["test_acc"]), "val_acc_after_finetune": float(last["val_acc"]),
        "algo": "hc_iter", "arch": "resnet20", "dataset": "Digits", "trial": 1, "seed": 42, "target_sparsity": 20.0,
        "device": "cpu (1 thread)",
    }  # fmt: skip
    assert {name: summary[name] for name in expected} == expected
    assert summary["seconds"] > 0
    assert float(last["model_sparsity"]) == pytest.approx(100 * kept / whole)
    assert {name: check["passes"] for name, check in summary["checks"].items()} == dict.fromkeys(CHECKS)
    assert (config.device, config.threads) == ("cpu", 1)


def test_tensorboard_shows_the_run(finished):
    logs = finished.parent.parent / "runs" / "trial_1"
    whole, search, against = (
        EventAccumulator(str(logs / part), size_guidance={"histograms": 0}).Reload()
        for part in ("", "search", "search/against")
    )
    assert {
        "lr", "loss/train", "loss/regularization", "accuracy/test", "accuracy/val", "accuracy/train", "layers/fc",
        "weights_remaining_percent", "unpruned_percent",
    } <= set(search.Tags()["scalars"])  # fmt: skip
    rows = [row for row in read_rows(finished / "acc_and_sparsity.csv") if row["phase"] == "search"]
    moves = {"mask/changed_in_epoch": [1, 2, 3], "mask/distance_to_last_pruning": [2, 3]}  # pruned after 1 to 3
    assert {tag: [event.step for event in search.Scalars(tag)] for tag in moves} == moves
    assert all(event.value > 0 for event in search.Scalars("throughput/images_a_second"))
    assert all(0 <= event.value <= 100 for event in search.Scalars("throughput/waiting_for_data_percent"))
    assert [(event.step, event.value) for event in against.Scalars("against_density/accuracy/test")] == [
        (round(1000 * float(row["model_sparsity"])), pytest.approx(float(row["test_acc"]))) for row in rows
    ]
    shown = [event.value for event in search.Scalars("accuracy/test")]
    assert shown == pytest.approx([float(row["test_acc"]) for row in rows])
    assert [event.step for event in search.Histograms("scores/layer1.0.conv1")] == [1, 2, 3]
    assert {"config/text_summary", "custom_scalars__config__"} <= set(whole.Tags()["tensors"])
    final = whole.Scalars("final/test_acc_after_finetune")[-1].value
    assert final == pytest.approx(summary_of(finished)["test_acc_after_finetune"])


def test_the_curves_are_drawn(finished):
    with Image.open(finished / "curves.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("L").getcolors()) > 10  # shades: something is drawn


def test_the_last_screen_says_what_was_found(finished):
    screen, summary = (finished.parent.parent / "screen.txt").read_text(), summary_of(finished)
    for said in (
        f"{summary['weights_remaining']:,} of {summary['weights_total']:,}", *CHECKS, str(finished), "undecided",
        f"{summary['test_acc_before_finetune']:.2f}%", f"{summary['test_acc_after_finetune']:.2f}%",
    ):  # fmt: skip
        assert said in screen


# ---- the same folder again -----------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(finished, done):
    before = (finished / "summary.json").read_bytes()
    assert "is finished: nothing to do" in done(*SMALL, "--results_dir", finished.parent).out
    assert (finished / "summary.json").read_bytes() == before
    done("--resume", finished)


def test_another_experiment_is_not_written_over_a_run(finished, refusal):
    said = refusal(*SMALL, "--lr", "0.2", "--results_dir", finished.parent)
    assert "lr 0.1 → 0.2" in said and "--name run_2" in said


# ---- stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "signum", "code"),
    [("search 2/4", signal.SIGTERM, 143), ("finetune 1/2", signal.SIGINT, 130),
     ("check/mask_shuffle 1/2", signal.SIGTERM, 143), ("search 3/4", signal.SIGKILL, -9)],
)  # fmt: skip
def test_a_stopped_run_goes_on_as_if_nothing_had_been(line, signum, code, finished, call, places, trial):
    ended, err = interrupted(line, *SMALL, *places, signum=signum)
    folder = trial()
    assert ended == code, err
    assert not (folder / "summary.json").exists()
    assert signum == signal.SIGKILL or f"python main.py --resume {folder}" in err
    again = call(*SMALL, *places)
    assert (again.code, f"python main.py --resume {folder}" in again.err) == (2, True)
    assert call("--resume", folder).code == 0
    assert same_bits(timeless(folder), timeless(finished))


# ---- other ways to run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    ["--no-hc_quantized --arch Conv2 --width 0.1 --regularization var_red_1",
     "--prune_type ExactBottomK --unflag_before_finetune --bn_type AffineBatchNorm --bias",
     "--bottom_k_on_forward --optimizer adam --lr 0.01 --use_full_data"],
)  # fmt: skip
def test_searches_of_every_kind_run_to_their_end(options, ran):
    folder = ran("--epochs", 3, "--fine_tune_epochs", 1, *options.split())
    summary = summary_of(folder)
    assert 0 < summary["weights_remaining"] <= summary["weights_total"]
    if "ExactBottomK" in options:
        assert summary["weights_remaining"] == int(0.2 * summary["weights_total"])
    if "--use_full_data" in options:
        assert summary["val_acc_after_finetune"] is None
        assert read_rows(folder / "acc_and_sparsity.csv")[0]["val_acc"] == ""


def test_trials_run_one_after_another_and_are_summed_up(done, places, tmp_path):
    outcome = done(*SMALL, *places, "--epochs", 2, "--fine_tune_epochs", 1, "--num_trial", 3)
    trials = json.loads((tmp_path / "results" / "trials.json").read_text())
    summaries = [summary_of(tmp_path / "results" / f"trial_{number}") for number in (1, 2, 3)]
    assert [one["seed"] for one in summaries] == [42, 84, 126]
    assert trials["trials"] == [1, 2, 3]
    after = [one["test_acc_after_finetune"] for one in summaries]
    assert trials["figures"]["test_acc_after_finetune"]["mean"] == pytest.approx(sum(after) / 3)
    assert isinstance(trials["checks"]["mask_shuffle"]["passes"], bool)
    verdict = trials["checks"]["mask_shuffle"]
    assert all(verdict.items() <= one["checks"]["mask_shuffle"].items() for one in summaries)
    assert "(n = 3)" in outcome.out


def test_a_kept_checkpoint_starts_a_warm_search(ran):
    words = ["--epochs", 3, "--skip_fine_tune"]
    keeping = ["--ckpt_at_fixed_epochs", 1, "--checkpoint_at_prune", "--save_every", 3, "--keep_checkpoints", 1]
    first = ran(*words, *keeping, name="first")
    assert {row["phase"] for row in read_rows(first / "acc_and_sparsity.csv")} == {"search"}
    assert (summary_of(first)["test_acc_after_finetune"], summary_of(first)["checks"]) == (None, {})
    kept = first / "checkpoints" / "search_epoch_001.pt"
    ran(*words, "--drop_bottom_half_weights", "--pretrained", kept, name="warm")


def test_a_checkpoint_of_the_dense_network_starts_a_warm_search(ran):
    kept = ran("--algo", "training", "--ckpt_at_fixed_epochs", 1, name="dense") / "checkpoints" / "search_epoch_001.pt"
    warm = ran("--pretrained", kept, "--drop_bottom_half_weights", "--skip_fine_tune", name="warm")
    assert not summary_of(warm)["as_drawn"] and summary_of(ran("--algo", "random", "--epochs", 1))["as_drawn"]
    ticket, _ = read_ticket(warm / "ticket.safetensors")
    stored = torch.load(kept, weights_only=True)
    assert stored["epoch"] == 2  # epochs are counted from 0: two are done
    assert torch.equal(ticket.state["fc.weight"], stored["training"]["network"]["fc.weight"])


def test_the_trained_network_is_an_ordinary_state_dict(ran):
    folder = ran("--epochs", 2, "--skip_sanity_checks", "--save_model")
    network = build_model(parse_args(SMALL))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    assert torch.equal(network.fc.weight != 0, read_ticket(folder / "ticket.safetensors")[0].masks["fc.weight"])


# ---- what cannot be used -------------------------------------------------------------------------------------------


def test_without_an_argument_the_first_commands_are_told_and_nothing_runs(call, tmp_path):
    process = start(cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, list(tmp_path.iterdir())) == (2, "", [])
    assert call() == (2, "", err)
    commands = re.findall(r"python main.py (.*?)  ", err)
    assert commands == ["--config configs/quickstart.yml", "--list algorithms", "--help"]
    assert call("--list", "algorithms").code == 0
    assert (PROJECT / "configs" / "quickstart.yml").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [("--epochs 1", "would never prune"), ("--target_sparsity 0", "has to be above 0"),
     ("--dataset ImageFolder --data nowhere", "there is no folder nowhere/train"),
     ("--pretrained nowhere.pt", "there is no file nowhere.pt"),
     ("--device cuda --gpu 99", "there is no GPU number 99"),
     ("--config nowhere.yml", "cannot read the config file nowhere.yml"),
     ("--resume nowhere", "--resume nowhere: there is no config.yml in it, so it is not the folder of a run")],
)  # fmt: skip
def test_bad_input_gets_one_message_and_leaves_nothing(options, says, call, places, tmp_path):
    outcome = call(*SMALL, *options.split(), *places)
    assert (outcome.code, outcome.err.count("error:"), list(tmp_path.iterdir())) == (2, 1, [])
    assert says in outcome.err


def test_a_network_that_no_memory_holds_is_told_in_one_line(call, places, tmp_path):
    outcome = call("--arch", "FC", "--hidden_size", 10**7, "--threads", 1, *places)
    assert (outcome.code, outcome.err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert outcome.err.startswith("error: out of memory: ")


def test_too_little_memory_for_python_itself_is_told_in_whole_words(refusal, places, monkeypatch):
    monkeypatch.setattr("trainers.pipeline.build_model", raising(MemoryError()))  # which says nothing
    assert refusal(*SMALL, *places).startswith("error: out of memory; a smaller batch_size")


def test_other_errors_of_pytorch_are_not_taken_for_that(call, places, monkeypatch):
    monkeypatch.setattr("trainers.pipeline.build_model", raising(RuntimeError("something is wrong with the program")))
    with pytest.raises(RuntimeError, match="wrong with the program"):
        call(*SMALL, *places)


def test_a_reader_that_goes_away_ends_the_program_without_a_word_and_not_as_if_all_were_done():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "main.py", "--list", "models"]
    done = subprocess.run(command, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_print_config_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    process = start(*SMALL, "--dataset", "ImageFolder", "--data", "nowhere", "--print-config", cwd=tmp_path)
    out, imported = process.communicate(timeout=60)
    assert (process.returncode, yaml.safe_load(out)["width"], list(tmp_path.iterdir())) == (0, 0.25, [])
    assert re.search(r"\bargs_helper\b", imported) and not re.search(r"\btorch\b", imported)


# ---- what ships with the project -----------------------------------------------------------------------------------

YAMLS = sorted(path for path in (PROJECT / "configs").rglob("*.yml") if not {"sweeps", "measured"} & {*path.parts})


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(PROJECT / "configs")))
def test_every_config_runs_by_its_header_and_states_only_what_differs(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"python main.py --config {path.relative_to(PROJECT)}" in line for line in header)
    config = parse_args(["--config", str(path)])
    # Where prune_rate could set the density, a file has to say that target_sparsity does.
    needed = {"target_sparsity"} if "prune_rate" in config.algorithm.density_options else set()
    for name in {*yaml.safe_load(path.read_text())} - needed:
        assert getattr(config, name) != OPTIONS[name].default, f"{name} is stated at its default"
    if named := re.search(r"(?<!epoch)_(\d+(?:_\d+)?)(?:_unflagT|_long)?$", path.stem):
        assert config.target_sparsity == float(named[1].replace("_", "."))
    tiny = DataSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    config = config.model_copy(update={"pretrained": None, "weights": None})  # another run's file, a download
    with torch.device("meta"):  # shapes without memory: a ResNet-50 in no time
        network = build_model(config, tiny if config.dataset == "ImageFolder" else declared_spec(config.dataset))
    assert all(parameter.is_meta for parameter in network.parameters())
    if config.algo == "smart_ratio":  # at some densities a network's classifier alone would take more than there is
        sizes = [weight.numel() for name, weight in prunable_parameters(network).items() if not is_bias(name)]
        assert all(layer_counts(sizes, 1.0 - config.density, config.arch))


def test_no_two_configs_have_one_name():
    names = [path.stem for path in YAMLS]  # a run's folder is called after it
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_the_quickstart_finds_a_gem(done, places, tmp_path):
    done("--config", PROJECT / "configs" / "quickstart.yml", *places)
    summary = summary_of(next((tmp_path / "results").rglob("summary.json")).parent)
    assert summary["weights_remaining_percent"] <= 1.44
    assert summary["effective_weights_remaining"] == summary["weights_remaining"]
    assert summary["test_acc_before_finetune"] > 70  # chance is 10
    assert summary["test_acc_after_finetune"] > 95
    assert summary["seconds"] < 600  # a claim of minutes, not a measurement


@pytest.mark.slow
def test_cifar_exec_runs_every_target_and_passes_options_on(places, tmp_path):
    options = [*SMALL, "--epochs", "2", "--fine_tune_epochs", "1", "--skip_sanity_checks", *places]
    at = options.index("--target_sparsity")
    done = script("cifar_exec.sh", tmp_path, *options[:at], *options[at + 2 :])
    assert done.returncode == 0, done.stderr
    found = {summary_of(path.parent)["target_sparsity"] for path in tmp_path.rglob("summary.json")}
    assert found == {3.72, 1.44, 0.59}


def test_cifar_exec_stops_at_the_first_failure(tmp_path):
    done = script("cifar_exec.sh", tmp_path, "--epochz", "2")
    assert (done.returncode, done.stdout.count("==")) == (2, 1)
    assert "did you mean '--epochs 2'?" in done.stderr
