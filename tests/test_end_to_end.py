"""Whole runs through `main.py`: what they leave behind, what they say, and that none is ever lost."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PROJECT, SMALL, Outcome, read_rows, same_bits, start, timeless
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from args_helper import OPTIONS, parse_args
from trainers.tickets.file import read_ticket
from utils.masks import remaining

CHECKS = ("weight_reinit", "mask_shuffle", "weight_shuffle")
COLUMNS = [
    "phase", "epoch", "lr", "test_acc_before_rounding", "test_acc", "val_acc", "train_acc", "train_loss",
    "regularization_loss", "model_sparsity", "seconds",
]  # fmt: skip

Call = Callable[..., Outcome]


# ---- what a run leaves behind --------------------------------------------------------------------------------------


def test_tables_have_a_row_for_every_epoch(finished: Path) -> None:
    rows = read_rows(finished / "acc_and_sparsity.csv")
    assert list(rows[0]) == COLUMNS
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        *(("search", str(epoch)) for epoch in range(4)),
        *(("finetune", str(epoch)) for epoch in range(2)),
    ]
    for check in CHECKS:
        rows = read_rows(finished / f"acc_and_sparsity_{check}.csv")
        assert [row["phase"] for row in rows] == [f"check/{check}"] * 2


def test_rows_pair_accuracy_with_the_density_it_was_measured_at(finished: Path) -> None:
    rows = [row for row in read_rows(finished / "acc_and_sparsity.csv") if row["phase"] == "search"]
    # Prunings follow the evaluations of epochs 1, 2 and 3, each to 20^(1/3)% of what was there.
    density = [float(row["model_sparsity"]) for row in rows]
    assert density[1] > 45
    assert density[2] <= 100 * 0.2 ** (1 / 3)
    assert density[3] <= 100 * 0.2 ** (2 / 3)
    assert all(row["test_acc"] == row["test_acc_before_rounding"] for row in rows)


def test_summary_agrees_with_the_ticket_and_the_tables(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    ticket, _ = read_ticket(finished / "ticket.safetensors")
    kept, gem = remaining(ticket.masks), remaining(ticket.gem)
    last = [row for row in read_rows(finished / "acc_and_sparsity.csv") if row["phase"] == "finetune"][-1]
    assert summary["weights_remaining"] == kept == sum(kept for kept, _ in summary["layers"].values())
    assert summary["gem_weights_remaining"] == gem
    assert summary["weights_total"] == sum(whole for _, whole in summary["layers"].values())
    assert summary["test_acc_after_finetune"] == float(last["test_acc"])
    assert summary["val_acc_after_finetune"] == float(last["val_acc"])
    assert float(last["model_sparsity"]) == pytest.approx(100 * kept / summary["weights_total"])
    assert set(summary["checks"]) == set(CHECKS)
    assert all(check["passes"] is None for check in summary["checks"].values())
    for name in ("algo", "arch", "dataset", "trial", "seed", "target_sparsity", "device", "config_hash", "seconds"):
        assert summary[name] is not None


def test_a_ticket_keeps_the_weights_that_its_mask_drops(finished: Path) -> None:
    ticket, _ = read_ticket(finished / "ticket.safetensors")
    dropped = ticket.state["layer2.0.conv1.weight"][~ticket.masks["layer2.0.conv1.weight"]]
    assert dropped.numel() > 0
    assert dropped.abs().min() > 0
    assert ticket.state["bn1.running_mean"].ne(0).any()


def test_the_stored_config_is_a_valid_one_with_everything_decided(finished: Path) -> None:
    config = parse_args(["--config", str(finished / "config.yml")])
    assert config.device == "cpu"
    assert config.threads == 1
    assert config.config_hash == json.loads((finished / "summary.json").read_text())["config_hash"]


def test_the_environment_is_written_down(finished: Path) -> None:
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "commit", "uncommitted_changes", "device"} <= set(environment)


def test_tensorboard_shows_the_run(finished: Path) -> None:
    logs = finished.parent.parent / "runs" / "trial_1"
    search = EventAccumulator(str(logs / "search"), size_guidance={"histograms": 0}).Reload()
    scalars = search.Tags()["scalars"]
    assert {"lr", "loss/train", "loss/regularization", "accuracy/test", "accuracy/val", "accuracy/train"} <= set(
        scalars
    )
    assert {"weights_remaining_percent", "weights_in_play_percent", "layers/fc"} <= set(scalars)
    rows = [row for row in read_rows(finished / "acc_and_sparsity.csv") if row["phase"] == "search"]
    assert [event.step for event in search.Scalars("mask/changed_in_epoch")] == [1, 2, 3]
    assert [event.step for event in search.Scalars("mask/distance_to_last_pruning")] == [2, 3]  # pruned after 1 to 3
    assert all(event.value > 0 for event in search.Scalars("throughput/images_a_second"))
    assert all(0 <= event.value <= 100 for event in search.Scalars("throughput/waiting_for_data_percent"))
    against = EventAccumulator(str(logs / "search" / "against")).Reload().Scalars("against_density/accuracy/test")
    assert [(event.step, event.value) for event in against] == [
        (round(1000 * float(row["model_sparsity"])), pytest.approx(float(row["test_acc"]))) for row in rows
    ]
    shown = [event.value for event in search.Scalars("accuracy/test")]
    assert shown == pytest.approx([float(row["test_acc"]) for row in rows])
    assert [event.step for event in search.Histograms("scores/layer1.0.conv1")] == [1, 2, 3]
    whole = EventAccumulator(str(logs)).Reload()
    assert {"config/text_summary", "custom_scalars__config__"} <= set(whole.Tags()["tensors"])
    final = whole.Scalars("final/test_acc_after_finetune")[-1].value
    assert final == pytest.approx(json.loads((finished / "summary.json").read_text())["test_acc_after_finetune"])


def test_the_curves_are_drawn(finished: Path) -> None:
    from PIL import Image

    with Image.open(finished / "curves.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("L").getcolors()) > 10  # shades: something is drawn


def test_the_last_screen_says_what_was_found(finished: Path) -> None:
    screen = (finished.parent.parent / "screen.txt").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    assert f"{summary['weights_remaining']:,} of {summary['weights_total']:,}" in screen
    assert f"{summary['test_acc_before_finetune']:.2f}%" in screen
    assert f"{summary['test_acc_after_finetune']:.2f}%" in screen
    assert all(check in screen for check in CHECKS)
    assert str(finished) in screen
    assert "undecided" in screen


# ---- the same folder again -----------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(finished: Path, call: Call) -> None:
    before = (finished / "summary.json").read_bytes()
    root = finished.parent.parent
    outcome = call(*SMALL, "--results_dir", root / "results", "--log_dir", root / "runs")
    assert outcome.code == 0
    assert "is finished: nothing to do" in outcome.out
    assert (finished / "summary.json").read_bytes() == before
    assert call("--resume", finished).code == 0


def test_another_experiment_is_not_written_over_a_run(finished: Path, call: Call) -> None:
    root = finished.parent.parent
    outcome = call(*SMALL, "--lr", "0.2", "--results_dir", root / "results", "--log_dir", root / "runs")
    assert outcome.code == 2
    assert "lr 0.1 → 0.2" in outcome.err
    assert "--name run_2" in outcome.err


def test_the_same_seed_gives_the_same_bits(finished: Path, call: Call, places: list[str], tmp_path: Path) -> None:
    assert call(*SMALL, *places).code == 0
    assert same_bits(timeless(tmp_path / "results" / "trial_1"), timeless(finished))


# ---- stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "signum", "code"),
    [
        ("search 2/4", signal.SIGTERM, 143),
        ("finetune 1/2", signal.SIGINT, 130),
        ("check/mask_shuffle 1/2", signal.SIGTERM, 143),
        ("search 3/4", signal.SIGKILL, -9),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    line: str, signum: int, code: int, finished: Path, call: Call, places: list[str], tmp_path: Path
) -> None:
    process = start(*SMALL, *places)
    for said in process.stdout:
        if said.startswith(line):
            process.send_signal(signum)
            break
    _, err = process.communicate(timeout=120)
    folder = tmp_path / "results" / "trial_1"
    assert process.returncode == code, err
    assert not (folder / "summary.json").exists()
    if signum != signal.SIGKILL:
        assert f"python main.py --resume {folder}" in err

    again = call(*SMALL, *places)
    assert again.code == 2
    assert f"python main.py --resume {folder}" in again.err

    assert call("--resume", folder).code == 0
    assert same_bits(timeless(folder), timeless(finished))


def test_a_run_is_resumed_only_as_it_began(finished: Path, call: Call) -> None:
    outcome = call("--resume", finished, "--epochs", "9")
    assert outcome.code == 2
    assert "epochs 4 → 9" in outcome.err


def test_resuming_what_is_no_run_says_so(call: Call, tmp_path: Path) -> None:
    outcome = call("--resume", tmp_path)
    assert outcome.code == 2
    assert "there is no config.yml in it" in outcome.err


# ---- other ways to run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--algo", "hc", "--arch", "FC", "--hidden_size", "16"],
        ["--no-hc_quantized", "--arch", "Conv2", "--width", "0.1", "--regularization", "var_red_1"],
        ["--prune_type", "ExactBottomK", "--unflag_before_finetune", "--bn_type", "AffineBatchNorm", "--bias"],
        ["--bottom_k_on_forward", "--optimizer", "adam", "--lr", "0.01", "--use_full_data"],
    ],
)
def test_searches_of_every_kind_run_to_their_end(
    options: list[str], call: Call, places: list[str], tmp_path: Path
) -> None:
    outcome = call(*SMALL, "--epochs", 3, "--fine_tune_epochs", 1, *options, *places)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "results" / "trial_1" / "summary.json").read_text())
    assert 0 < summary["weights_remaining"] <= summary["weights_total"]
    if "ExactBottomK" in options:
        assert summary["weights_remaining"] == int(0.2 * summary["weights_total"])
    if "--use_full_data" in options:
        assert summary["val_acc_after_finetune"] is None
        assert read_rows(tmp_path / "results" / "trial_1" / "acc_and_sparsity.csv")[0]["val_acc"] == ""


def test_trials_run_one_after_another_and_are_summed_up(call: Call, places: list[str], tmp_path: Path) -> None:
    options = ["--epochs", 2, "--fine_tune_epochs", 1, "--name", "three", "--num_trial", 3]
    outcome = call(*SMALL, *options, *places)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "results" / "three"
    trials = json.loads((folder / "trials.json").read_text())
    summaries = [json.loads((folder / f"trial_{k}" / "summary.json").read_text()) for k in (1, 2, 3)]
    assert [one["seed"] for one in summaries] == [42, 84, 126]
    assert trials["trials"] == [1, 2, 3]
    after = [one["test_acc_after_finetune"] for one in summaries]
    assert trials["figures"]["test_acc_after_finetune"]["mean"] == pytest.approx(sum(after) / 3)
    assert isinstance(trials["checks"]["mask_shuffle"]["passes"], bool)
    assert summaries[2]["checks"]["mask_shuffle"]["passes"] == trials["checks"]["mask_shuffle"]["passes"]
    assert "(n = 3)" in outcome.out


def test_a_trial_that_is_resumed_goes_on_with_the_later_ones(call: Call, places: list[str], tmp_path: Path) -> None:
    options = [*SMALL, "--epochs", "2", "--fine_tune_epochs", "1", "--skip_sanity_checks", "--num_trial", "2"]
    process = start(*options, *places)
    for said in process.stdout:
        if said.startswith("search 1/2"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert call("--resume", tmp_path / "results" / "trial_1").code == 0
    assert (tmp_path / "results" / "trial_1" / "summary.json").exists()
    assert (tmp_path / "results" / "trial_2" / "summary.json").exists()


def test_a_kept_checkpoint_starts_a_warm_search(call: Call, places: list[str], tmp_path: Path) -> None:
    first = [*SMALL, "--epochs", 3, "--skip_fine_tune", "--name", "first", *places]
    keeping = ["--ckpt_at_fixed_epochs", 1, "--checkpoint_at_prune", "--save_every", 3, "--keep_checkpoints", 1]
    assert call(*first, *keeping).code == 0
    kept = tmp_path / "results" / "first" / "trial_1" / "checkpoints"
    assert {path.name for path in kept.iterdir()} == {"search.pt", "search_epoch_001.pt", "search_epoch_002.pt"}
    warm = [*SMALL, "--epochs", 3, "--skip_fine_tune", "--name", "warm", *places, "--drop_bottom_half_weights"]
    assert call(*warm, "--pretrained", kept / "search_epoch_001.pt").code == 0


def test_a_checkpoint_of_the_dense_network_starts_a_warm_search(call: Call, places: list[str], tmp_path: Path) -> None:
    dense = ["--algo", "training", "--ckpt_at_fixed_epochs", 1, "--name", "dense"]
    assert call(*SMALL, *places, *dense).code == 0
    kept = tmp_path / "results" / "dense" / "trial_1" / "checkpoints" / "search_epoch_001.pt"
    warm = ["--pretrained", kept, "--drop_bottom_half_weights", "--skip_fine_tune", "--name", "warm"]
    outcome = call(*SMALL, *places, *warm)
    assert outcome.code == 0, outcome.err
    ticket, _ = read_ticket(tmp_path / "results" / "warm" / "trial_1" / "ticket.safetensors")
    trained = torch.load(kept, weights_only=True)["training"]["network"]
    assert torch.equal(ticket.state["layer2.0.conv1.weight"], trained["layer2.0.conv1.weight"])


def test_skipping_leaves_out_what_it_says(call: Call, places: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "results" / "trial_1"
    assert call(*SMALL, "--epochs", 2, "--skip_fine_tune", *places).code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_acc_after_finetune"] is None
    assert summary["checks"] == {}
    assert {row["phase"] for row in read_rows(folder / "acc_and_sparsity.csv")} == {"search"}


def test_the_trained_network_is_an_ordinary_state_dict(call: Call, places: list[str], tmp_path: Path) -> None:
    from data.load import declared_spec
    from models.build import build_model

    folder = tmp_path / "results" / "trial_1"
    assert call(*SMALL, "--epochs", 2, "--skip_sanity_checks", "--save_model", *places).code == 0
    network = build_model(parse_args(SMALL), declared_spec("Digits"))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    mask = read_ticket(folder / "ticket.safetensors")[0].masks["fc.weight"]
    assert (network.fc.weight[~mask] == 0).all()
    assert (network.fc.weight[mask] != 0).all()


def test_a_folder_of_images_goes_all_the_way(call: Call, places: list[str], tmp_path: Path) -> None:
    from PIL import Image

    for split, count in (("train", 30), ("test", 5)):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (shade, shade, shade + number)).save(folder / f"{number}.png")
    options = ["--dataset", "ImageFolder", "--data", tmp_path / "images", "--batch_size", 8]
    outcome = call(*SMALL, *options, "--skip_sanity_checks", *places)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "results" / "trial_1" / "summary.json").read_text())
    assert summary["classes"] == 2
    assert summary["test_acc_after_finetune"] == 100.0


# ---- what cannot be used -------------------------------------------------------------------------------------------


def test_without_an_argument_the_first_commands_are_told_and_nothing_runs(call: Call, tmp_path: Path) -> None:
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
    [
        (["--epochs", "1"], "would never prune"),
        (["--target_sparsity", "0"], "has to be above 0"),
        (["--dataset", "ImageFolder", "--data", "nowhere"], "there is no folder nowhere/train"),
        (["--pretrained", "nowhere.pt"], "there is no file nowhere.pt"),
        (["--device", "cuda", "--gpu", "99"], "there is no GPU number 99"),
        (["--config", "nowhere.yml"], "cannot read the config file nowhere.yml"),
    ],
)
def test_bad_input_gets_one_message_and_leaves_nothing(
    options: list[str], says: str, call: Call, places: list[str], tmp_path: Path
) -> None:
    outcome = call(*SMALL, *options, *places)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_no_memory_holds_is_told_in_one_line(call: Call, places: list[str], tmp_path: Path) -> None:
    outcome = call("--arch", "FC", "--hidden_size", 10**7, "--threads", 1, *places)
    assert outcome.code == 2
    assert outcome.err.startswith("error: out of memory: ") and outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_pytorch_are_not_taken_for_that(call: Call, places: list[str], monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("something is wrong with the program")

    monkeypatch.setattr("trainers.pipeline.build_model", fail)
    with pytest.raises(RuntimeError, match="wrong with the program"):
        call(*SMALL, *places)


def test_a_user_sees_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("epochs: ten\nlr: [0.1\n")
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", "--config", "bad.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "bad.yml is not YAML" in done.stderr
    assert "Traceback" not in done.stderr


def test_print_config_touches_nothing(tmp_path: Path) -> None:
    words = ["-X", "importtime", PROJECT / "main.py", *SMALL, "--dataset", "ImageFolder", "--data", "nowhere"]
    done = subprocess.run(
        [sys.executable, *map(str, words), "--print-config"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["width"] == 0.25
    assert not re.search(r"\btorch\b", done.stderr)
    assert list(tmp_path.iterdir()) == []


# ---- what ships with the project -----------------------------------------------------------------------------------

YAMLS = sorted(path for path in (PROJECT / "configs").rglob("*.yml") if not {"sweeps", "measured"} & {*path.parts})


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(PROJECT / "configs")))
def test_every_config_runs_by_its_header_and_states_only_what_differs(path: Path) -> None:
    from data.load import declared_spec
    from data.spec import DataSpec
    from models.build import build_model
    from models.masking import prunable_parameters
    from trainers.algorithms.smart_ratio import layer_counts
    from utils.masks import is_bias

    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"python main.py --config {path.relative_to(PROJECT)}" in line for line in header)
    config = parse_args(["--config", str(path)])
    for name in yaml.safe_load(path.read_text()):
        assert getattr(config, name) != OPTIONS[name].default, f"{name} is stated at its default"
    tiny = DataSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    config = config.model_copy(update={"pretrained": None, "weights": None})  # another run's file, a download
    with torch.device("meta"):  # shapes without memory: a ResNet-50 in no time
        network = build_model(config, tiny if config.dataset == "ImageFolder" else declared_spec(config.dataset))
    assert all(parameter.is_meta for parameter in network.parameters())
    if config.algo == "smart_ratio":  # at some densities a network's classifier alone would take more than there is
        sizes = [weight.numel() for name, weight in prunable_parameters(network).items() if not is_bias(name)]
        assert all(layer_counts(sizes, 1.0 - config.density, config.arch))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(PROJECT / "configs")))
def test_a_config_is_called_after_its_target(path: Path) -> None:
    if named := re.search(r"(?<!epoch)_(\d+(?:_\d+)?)(?:_unflagT|_long)?$", path.stem):
        assert parse_args(["--config", str(path)]).target_sparsity == float(named[1].replace("_", "."))


def test_no_two_configs_have_one_name() -> None:
    names = [path.stem for path in YAMLS]  # a run's folder is called after it
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_the_quickstart_finds_a_gem(call: Call, places: list[str], tmp_path: Path) -> None:
    outcome = call("--config", PROJECT / "configs" / "quickstart.yml", *places)
    assert outcome.code == 0, outcome.err
    summary = json.loads(next((tmp_path / "results").rglob("summary.json")).read_text())
    assert summary["weights_remaining_percent"] <= 1.44
    assert summary["test_acc_before_finetune"] > 70  # chance is 10
    assert summary["test_acc_after_finetune"] > 95
    assert summary["seconds"] < 600  # a claim of minutes, not a measurement


def test_cifar_exec_runs_every_target_and_passes_options_on(places: list[str], tmp_path: Path) -> None:
    # Options are of the test's own making: three targets on Digits instead of CIFAR-10.
    options = [*SMALL, "--epochs", "2", "--fine_tune_epochs", "1", "--skip_sanity_checks", *places]
    at = options.index("--target_sparsity")
    del options[at : at + 2]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "TRIALS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", PROJECT / "cifar_exec.sh", *options], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = {json.loads(path.read_text())["target_sparsity"] for path in tmp_path.rglob("summary.json")}
    assert found == {3.72, 1.44, 0.59}


def test_cifar_exec_stops_at_the_first_failure(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", PROJECT / "cifar_exec.sh", "--epochz", "2"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert done.stdout.count("==") == 1
    assert "did you mean '--epochs 2'?" in done.stderr
