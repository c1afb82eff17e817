"""What goes wrong around a run: each time one message, nothing lost, and the run goes on to the same end."""

import json
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from data.load import load_data
from tests import faults
from tests.conftest import PROJECT, SMALL, interrupted, raising, read_rows, same_bits, start, summary_of, timeless
from utils.errors import UserError
from utils.run.lock import locked
from utils.run.progress import Progress
from utils.run.run import Run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped within its fine-tuning."""
    root = tmp_path_factory.mktemp("stopped")
    interrupted("finetune 1/2", *SMALL, "--results_dir", root / "results", "--log_dir", root / "runs")
    return root / "results" / "trial_1"


@pytest.fixture
def begun(stopped, trial):
    """That run, in a folder of the test's own."""
    return shutil.copytree(stopped, trial())


def test_a_run_that_another_process_is_at_is_left_alone(begun, refusal, monkeypatch):
    monkeypatch.setattr("utils.run.lock.PATIENCE", 0.0)
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*") if path.name != ".lock"}
    with locked(begun):
        assert f"{begun} is in use by another process" in refusal("--resume", begun)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(begun, done, finished):
    newest = begun / "checkpoints" / "finetune.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    for half_written in (newest.with_name(".finetune.pt.x.part"), begun / ".ticket.safetensors.x.part"):
        half_written.touch()
    assert f"the checkpoint {newest} is damaged: going on from finetune.1.pt" in done("--resume", begun).err
    assert same_bits(timeless(begun), timeless(finished))
    assert not list(begun.rglob("*.part"))


def test_a_folder_that_another_process_has_used_meanwhile_is_left_alone(finished, places, trial, refusal, monkeypatch):
    def slowly(config):
        shutil.copytree(finished, trial())
        return load_data(config)

    monkeypatch.setattr("trainers.pipeline.load_data", slowly)
    assert "holds another experiment, which differs in: seed 42 → 7" in refusal(*SMALL, "--seed", 7, *places)
    assert same_bits(timeless(trial()), timeless(finished))


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_when_there_is_room(done, places, trial, finished):
    size = 60_000  # bytes a file may have: enough for the first files, not for a checkpoint

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    command = [sys.executable, str(PROJECT / "main.py"), *SMALL, *places]
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert full.returncode == 2
    assert re.fullmatch(r"error: cannot write \S+search\.pt: File too large", full.stderr.splitlines()[-1])
    assert "Traceback" not in full.stderr
    folder = trial()
    assert not list(folder.rglob("*.part"))
    done(*(("--resume", folder) if folder.exists() else (*SMALL, *places)))
    assert same_bits(timeless(folder), timeless(finished))


@pytest.fixture
def at_first_epoch_of_fine_tuning(monkeypatch):
    """Do something in the middle of a run, once its ticket is there."""

    def arranged(do):
        log = Run.log

        def logging(run, stage, epoch, *rest):
            if (stage, epoch) == ("finetune", 0):
                monkeypatch.setattr(Run, "log", log)
                do()
            log(run, stage, epoch, *rest)

        monkeypatch.setattr(Run, "log", logging)

    return arranged


@pytest.mark.parametrize("every", ["1", "5"])
def test_a_run_whose_folder_is_moved_ends_and_goes_on_where_it_is_now(
    every, done, refusal, places, tmp_path, finished, at_first_epoch_of_fine_tuning
):
    place, moved = tmp_path / "results" / "trial_1", tmp_path / "moved"
    at_first_epoch_of_fine_tuning(lambda: shutil.move(place, moved))
    told = refusal(*SMALL, *places, "--checkpoint_every", every)
    assert f"{place} was moved or removed while the run went on" in told
    assert not place.exists() and list((tmp_path / "runs").rglob("events*"))
    done("--resume", moved)
    assert same_bits(timeless(moved), timeless(finished))


def test_a_run_that_loses_its_checkpoints_keeps_its_ticket_when_it_fails(
    refusal, places, trial, at_first_epoch_of_fine_tuning
):
    def lose():
        shutil.rmtree(trial() / "checkpoints")
        raise UserError("the disk is full")

    at_first_epoch_of_fine_tuning(lose)
    assert "the disk is full" in refusal(*SMALL, *places)
    assert (trial() / "ticket.safetensors").is_file()


@pytest.mark.parametrize(("results", "logs", "said"), [
    ("file/results", "runs", "cannot make the folder {}/file/results/trial_1: Not a directory"),
    ("results", "file/runs", "cannot write TensorBoard events to {}/file/runs"),
])  # fmt: skip
def test_a_folder_that_cannot_be_made_is_told(results, logs, said, refusal, tmp_path):
    (tmp_path / "file").write_text("")
    told = refusal(*SMALL, "--results_dir", tmp_path / results, "--log_dir", tmp_path / logs)
    assert f"error: {said.format(tmp_path)}" in told
    assert not (tmp_path / "runs").exists()


def test_max_time_stops_before_it_is_over_and_a_loop_comes_to_the_same_end(places, trial, finished):
    folder, codes = trial(), []
    while not codes or codes[-1] == 75:
        words = ["--resume", folder] if folder.exists() else [*SMALL, *places]
        # The time counts from the start of the process, most of which PyTorch's import takes.
        process = start(*words, "--max_time", "1s" if len(codes) < 2 else "10m")
        _, err = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert codes[-1] != 75 or "go on with: python main.py --resume" in err
    assert codes[0] == 75 and codes[-1] == 0
    assert same_bits(timeless(folder), timeless(finished))


def test_a_run_goes_on_with_other_options_when_asked_to(begun, call, done, refusal):
    others = ("--resume", begun, "--fine_tune_lr", "0.5", "--fine_tune_epochs", "3")
    assert "fine_tune_lr 0.01 → 0.5; --resume_anyway goes on" in call(*others).err
    said = "no sanity checks: the run was resumed with fine_tune_epochs 2 → 3, fine_tune_lr 0.01 → 0.5, perhaps within"
    assert said in done(*others, "--resume_anyway").err
    assert summary_of(begun)["checks"] == {}
    rows = [row for row in read_rows(begun / "acc_and_sparsity.csv") if row["phase"] == "finetune"]
    assert [row["lr"] for row in rows] == ["0.01", "0.5", "0.5"]
    assert "resumed_with: fine_tune_epochs 2 → 3, fine_tune_lr 0.01 → 0.5" in (begun / "config.yml").read_text()
    assert "is finished" in refusal("--resume", begun, "--fine_tune_lr", "0.1", "--resume_anyway")


@pytest.mark.parametrize(("changed", "checks"), [("--fine_tune_lr", 3), ("--fine_tune_wd", 0)])
def test_a_ticket_that_was_trained_with_the_new_options_alone_is_checked_where_that_is_sure(
    changed, checks, call, done, places, trial, monkeypatch
):
    with monkeypatch.context() as stopping:
        stopping.setattr("utils.run.stopping.Stopping.asked", property(lambda _: 143))
        assert call(*SMALL, *places).code == 143
    done("--resume", trial(), changed, 0.02, "--resume_anyway")
    assert len(summary_of(trial())["checks"]) == checks


def test_where_a_run_went_on_is_written_down(begun, done, monkeypatch):
    place = begun / "environment.json"
    first = json.loads(place.read_text())
    done("--resume", begun, "--skip_sanity_checks")
    assert "resumed_in" not in json.loads(place.read_text())
    assert summary_of(begun)["device"] == first["device"]
    elsewhere = {"python": "4.0", "device": "NVIDIA H200"}
    monkeypatch.setattr("trainers.results.run_folder.describe_environment", lambda device: {**first, **elsewhere})
    (begun / "summary.json").unlink()
    done("--resume", begun)
    assert json.loads(place.read_text()) == {**first, "resumed_in": [elsewhere]}
    assert summary_of(begun)["device"] == f"{first['device']}, NVIDIA H200"


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"resumed_in": 5}', '{"resumed_in": [5]}'])
def test_a_damaged_environment_is_written_anew(begun, done, damaged):
    place = begun / "environment.json"
    first = place.read_text()
    place.write_text(damaged)
    done("--resume", begun, "--skip_sanity_checks")
    assert place.read_text() == first


def test_an_operation_that_cannot_be_deterministic_is_named(refusal, places, monkeypatch):
    error = RuntimeError("kthvalue CUDA does not have a deterministic implementation, but you set ...")
    monkeypatch.setattr("trainers.algorithms.gem_miner.prune_lowest", raising(error))
    said = "error: deterministic: kthvalue CUDA has no deterministic implementation on this device"
    assert said in refusal(*SMALL, *places, "--deterministic")


def test_deterministic_is_what_a_run_asked_for_and_no_other(done, places, finished):
    for words, asked in (((*SMALL, *places, "--deterministic"), True), (("--resume", finished), False)):
        done(*words)
        assert torch.are_deterministic_algorithms_enabled() is asked


def test_a_run_of_the_harness_waits_for_no_lock_of_this_process(tmp_path):
    words = [*SMALL, *"--epochs 2 --skip_fine_tune --results_dir".split(), str(tmp_path)]
    with ThreadPoolExecutor(1) as other:
        other.submit(Progress.get_lock().acquire).result()
        try:
            assert faults.undisturbed([*words, "--log_dir", str(tmp_path)], tmp_path) > 0
        finally:
            other.submit(Progress.get_lock().release)


@pytest.mark.slow
def test_runs_that_are_killed_at_random_lose_nothing():
    command = [sys.executable, "-m", "tests.faults", "--kills", "30", "--seed", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [int(total) for total in re.findall(r"(\d+) \|$", done.stdout, re.MULTILINE)]  # by kind of work
    assert sum(kills) >= 30 and len(list(filter(None, kills))) >= 4
