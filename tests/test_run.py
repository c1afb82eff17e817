"""A run on disk, its display, its optimizers and its machine."""

import io
import itertools
import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from args_helper import config_of, parse_args
from tests.conftest import PROJECT, SMALL, epoch_row, read_rows
from tests.toys import complaint
from trainers.benchmark import __main__ as benchmark
from trainers.results.run_folder import decided, resolved
from trainers.sweeping.units import Unit
from trainers.training.epoch_row import EpochRow
from trainers.training.optim import decay_groups, flat_gradients
from trainers.training.tensorboard import show
from utils.distributed.launch import Launch
from utils.environment import be_deterministic, choose_device, describe_environment
from utils.errors import Stopped, UserError
from utils.rng import derive_rng
from utils.run.progress import Progress
from utils.run.run import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", tmp_path / "log", seed=42)


# ---- randomness ----------------------------------------------------------------------------------------------------


def test_streams_stay_what_they_are_so_that_old_runs_can_be_repeated(run):
    streams = derive_rng(42, "search", "batches", 3, 0), run.rng("search", "batches", 3)
    assert [stream.initial_seed() for stream in streams] == [1100062780936776333] * 2


def test_every_part_of_the_path_makes_another_stream(tmp_path, run):
    streams = [run.rng(stage, stream) for stage in ("search", "finetune", "search/round_3") for stream in ("a", "b")]
    streams += [run.rng("search", "a", epoch) for epoch in (1, 2, 10)]
    streams += [run.rng("search", "a", epoch, step) for epoch in (0, 1) for step in (1, 2)]
    streams += [Run(tmp_path, tmp_path, seed).rng("search", "a") for seed in (0, 1, 43)]
    draws = torch.stack([torch.randn(2000, generator=stream) for stream in streams])
    assert (torch.corrcoef(draws) - torch.eye(len(streams))).abs().max() < 0.12  # five standard deviations


# ---- rows ----------------------------------------------------------------------------------------------------------


def rows(phase, count):
    row = {"phase": phase, "val_acc": None, "seconds": 2.0}
    return [{**row, "epoch": epoch, "test_acc": 10.5 + epoch} for epoch in range(count)]


def table(path):
    return [(row["phase"], int(row["epoch"])) for row in read_rows(path)]


def test_a_table_is_rewritten_whole_search_first(run):
    path, first = run.folder / "acc_and_sparsity.csv", rows("search", 1)
    run.record("search", [])
    assert not path.exists()
    run.record("search", first)
    assert path.read_text() == "phase,val_acc,seconds,epoch,test_acc\nsearch,,2.0,0,10.5\n"
    first.append(None)  # the caller's own list
    assert run.rows("search") == rows("search", 1)
    for stage, count in (("search", 2), ("finetune", 1), ("finetune", 2), ("search", 2)):
        run.record(stage, rows(stage, count))
    assert table(path) == [("search", 0), ("search", 1), ("finetune", 0), ("finetune", 1)]
    assert (run.rows("search"), run.rows("check/mask_shuffle")) == (rows("search", 2), [])


def test_a_check_has_a_table_of_its_own(tmp_path):
    run = Run(tmp_path, tmp_path, 1, "my.csv")
    run.record("finetune", rows("finetune", 1))
    run.record("check/mask_shuffle", rows("check/mask_shuffle", 2))
    checked = [("check/mask_shuffle", 0), ("check/mask_shuffle", 1)]
    tables = {path.name: table(path) for path in tmp_path.iterdir()}
    assert tables == {"my.csv": [("finetune", 0)], "my_mask_shuffle.csv": checked}


def test_seconds_are_summed_over_stages_and_what_is_under_them(run):
    for stage, count in {"search": 1, "search/round_3": 2, "search_other": 4, "check/a": 8, "check/b": 16}.items():
        run.record(stage, rows(stage, count))
    stages = [("search",), ("check",), ("check/a",), ("search", "search/round_3", "check"), ("finetune",)]
    assert [run.seconds(*some) / 2.0 for some in stages] == [1 + 2, 8 + 16, 8, 1 + 2 + 8 + 16, 0]


# ---- events --------------------------------------------------------------------------------------------------------


def logged(run):
    """What TensorBoard shows of the search, as (epoch, value)."""
    found = EventAccumulator(str(run.log_folder / "search")).Reload().Scalars("accuracy/test")
    return [(event.step, event.value) for event in found]


@pytest.mark.parametrize(("same", "again", "kept"), [
    (False, (3, 4, 5), [(0, 0), (1, 1), (2, 2), (3, 300), (4, 400), (5, 500)]),
    (True, (3, 4, 5), [(0, 0), (1, 1), (2, 2), (3, 300), (4, 400), (5, 500)]), (False, (0,), [(0, 0)]),
], ids=["in a new process", "in the same one", "from the beginning"])  # fmt: skip
def test_events_of_epochs_that_are_run_again_take_the_place_of_the_old_ones(run, same, again, kept, monkeypatch):
    # Event files are read in the order of the seconds in their names: let each have a second of its own.
    ticking = SimpleNamespace(time=itertools.count(1_700_000_000).__next__)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", ticking)
    later = run if same else Run(run.folder, run.log_folder, seed=42)
    for number, (one, epochs, factor) in enumerate(((run, range(5), 1.0), (later, again, 100.0)), start=1):
        with one.until_stopped():
            for epoch in epochs:
                one.log("search", epoch, {"accuracy/test": factor * epoch}, {})
                assert logged(run)[-1] == (epoch, factor * epoch)  # before the next one begins
            assert len([*(run.log_folder / "search").iterdir()]) == number  # one file for all epochs
    assert logged(run) == kept


def test_points_against_the_density_are_shown_once_when_epochs_are_run_again(run, monkeypatch):
    ticking = SimpleNamespace(time=itertools.count(1_700_000_000).__next__)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", ticking)
    rows = [EpochRow(**{**epoch_row(epoch), "model_sparsity": 50.0 - epoch}).model_dump() for epoch in range(4)]
    for one, first in ((run, 0), (Run(run.folder, run.log_folder, seed=42), 1)):  # killed; the checkpoint had one epoch
        with one.until_stopped():
            for epoch in range(first, 4):
                one.record("search", rows[:epoch])
                show(one, "search", SimpleNamespace(describe=lambda: ({}, {})), rows[epoch], {})
    found = EventAccumulator(str(run.log_folder / "search" / "against")).Reload()
    steps = [event.step for event in found.Scalars("against_density/accuracy/test")]
    assert steps == [50_000, 49_000, 48_000, 47_000]


# ---- stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_asks_to_stop_and_the_run_leaves_when_it_has_saved(run, signum, code):
    with pytest.raises(Stopped) as raised, run.until_stopped() as within:
        assert within is run
        assert run.asked("search") == (0, False)
        signal.raise_signal(signum)
        assert run.asked("search") == (code, False)
        run.stop(code)
    assert raised.value.exit_code == code
    said = f"stopped by {signal.Signals(signum).name}; go on with: python main.py --resume {run.folder}"
    assert str(raised.value) == said


def test_a_second_signal_stops_at_once(run):
    with pytest.raises(KeyboardInterrupt), run.until_stopped():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was not heeded")


@pytest.mark.parametrize("error", [None, UserError("no"), KeyboardInterrupt()], ids=repr)
def test_signals_go_where_they_went_before_when_the_run_is_left(run, error, request):
    names, own = (signal.SIGINT, signal.SIGTERM), lambda *_: None
    for name in names:
        request.addfinalizer(partial(signal.signal, name, signal.signal(name, own)))
    with suppress(UserError, KeyboardInterrupt), run.until_stopped():
        assert own not in map(signal.getsignal, names)
        if error:
            raise error
    assert [signal.getsignal(name) for name in names] == [own, own]


# ---- the display ---------------------------------------------------------------------------------------------------


def shown(monkeypatch, refresh_every):
    """What stands on a terminal after a stage of 2 epochs of 10 steps, gone on with at step 3 of the first."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.isatty = lambda: True
    with Progress("search", 2, 10, refresh_every) as progress:
        for epoch in range(2):
            for step in range(3 if epoch == 0 else 0, 10):
                progress.at(epoch, step)
            progress.epoch_done(epoch, {"loss": f"0.{epoch}", "test": "9%"})
    return sys.stderr.getvalue()


def test_a_terminal_shows_a_bar_that_goes_on_from_where_the_stage_was(monkeypatch, capsys):
    bar = shown(monkeypatch, refresh_every=1)
    assert capsys.readouterr().out == ""
    assert bar.rpartition("\r")[2].startswith("search: 100%")
    assert all(told in bar for told in ("20/20", "loss=0.1", "test=9%", " 3/20", " 13/20"))
    assert " 21/20" not in bar and " 1/20" not in bar
    assert shown(monkeypatch, refresh_every=10).count("\r") < bar.count("\r") / 2  # not drawn at every step


# ---- parameters ----------------------------------------------------------------------------------------------------


def test_flat_gradients_are_laid_out_as_their_parameters_are():
    pictures = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    parameters = [nn.Parameter(value) for value in (pictures, torch.randn(5, 6)[:, :2], torch.randn(3).double())]
    parameters[0].grad = torch.ones_like(pictures)
    single, double = flat_gradients(parameters)
    assert [parameter.grad.stride() for parameter in parameters] == [pictures.stride(), (2, 1), (1,)]
    assert (single.shape, double.shape, double.dtype) == ((96 + 10,), (3,), torch.float64)
    assert not any(parameter.grad.any() for parameter in parameters)
    sum((parameter * parameter.detach()).sum() for parameter in parameters).backward()
    assert all(torch.equal(parameter.grad, parameter.detach()) for parameter in parameters)
    torch._foreach_zero_([single, double])
    assert not any(parameter.grad.any() for parameter in parameters)


def test_batch_norm_parameters_are_spared_the_decay_if_asked():
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), inner, nn.LayerNorm(2))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    everything, spared = {*names.values()}, {"1.weight", "1.bias", "2.1.weight", "2.1.bias"}
    for options, wanted in (((), [(everything, 0.3)]), ((True,), [(everything - spared, 0.3), (spared, 0.0)])):
        groups = decay_groups(net, 0.3, *options)
        assert [({names[id(one)] for one in group["params"]}, group["weight_decay"]) for group in groups] == wanted


# ---- the machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "gpu", "no_cuda", "gpus", "chosen"), [
    ("auto", 0, False, 0, "cpu"), ("auto", 0, False, 1, "cuda"), ("auto", 1, False, 2, "cuda"),
    ("auto", 1, False, 1, "cpu"), ("auto", 0, True, 1, "cpu"), ("cpu", 0, False, 1, "cpu"),
    ("cuda", 1, False, 2, "cuda"), ("cuda", 0, True, 1, "cuda"),  # `device` beats `no_cuda`
])  # fmt: skip
def test_the_device_is_the_one_wanted_or_the_gpu_that_is_there(monkeypatch, wanted, gpu, no_cuda, gpus, chosen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(wanted, gpu, no_cuda) == chosen


def test_a_run_that_was_begun_on_a_cpu_goes_on_in_its_precision_on_a_gpu(monkeypatch):
    monkeypatch.setattr("trainers.results.run_folder.choose_device", lambda *_: "cuda")
    found = [decided(config_of({"mixed_precision": True, "resume": resume})).precision for resume in (None, "x")]
    assert found == ["bf16", "fp32"]


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    cuda, mps = (complaint(choose_device, device, gpu, False) for device, gpu in (("cuda", 2), ("mps", 0)))
    assert cuda == "device cuda: there is no GPU number 2 here; give --gpu 0 or --device cpu"
    assert mps == "device mps: there is none here; give --device cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps", 0, False) == "mps"


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two GPUs; returns what is done about them, in order."""
    done = []

    def load(config):
        done.append(f"data to {config.torch_device}")
        raise UserError("as far as this goes")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(f"set {device}"))
    for module in ("pipeline", "dry_run", "analysis.network_file", "benchmark.__main__"):
        monkeypatch.setattr(f"trainers.{module}.load_data", load)
    return done


@pytest.mark.parametrize("mode", [
    "", "--dry_run", "--evaluate --pretrained a.pt", "--pretrained a.pt --compare_rounding",
    "--mode_connect --pretrained a.pt --pretrained2 b.pt", "--export",
])  # fmt: skip
def test_the_gpu_is_made_the_process_s_own_before_anything_comes_to_it(mode, two_gpus, call, places, tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    words = [tmp_path / word if word.endswith(".pt") else word for word in mode.split()]
    outcome = call(*SMALL, *places, *words, "--device", "cuda", "--gpu", 1)
    assert (outcome.code, outcome.err) == (2, "error: as far as this goes\n")
    assert two_gpus == ["set cuda:1", "data to cuda:1"]


def test_the_benchmark_makes_its_gpu_its_own_first(two_gpus):
    assert benchmark.main(["--device", "cuda", "--gpu", "1"]) == 2
    assert two_gpus == ["set cuda:1", "data to cuda:1"]


def test_a_rank_makes_the_gpu_of_its_number_on_the_machine_its_own(two_gpus, monkeypatch):
    launch = Launch(rank=3, world=4, local_rank=1, local_world=2, by_torchrun=True)
    monkeypatch.setattr("trainers.results.run_folder.launched", lambda: launch)
    assert resolved(parse_args(SMALL)).torch_device == "cuda:1"
    assert two_gpus == ["set cuda:1"]


def test_nothing_is_set_for_the_cpu_nor_in_a_process_that_only_starts_others(two_gpus):
    resolved(parse_args([*SMALL, "--device", "cpu"]))
    assert Unit.of("one", parse_args([*SMALL, "--gpu", "1"])).config.torch_device == "cuda:1"
    assert two_gpus == []


def test_cudnn_tries_out_what_is_fastest_unless_every_run_has_to_have_the_same_bits(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored
    for wanted in (True, False):
        be_deterministic(wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert torch.backends.cudnn.benchmark != wanted


NO_CHECKOUT = subprocess.CalledProcessError(128, "git")


@pytest.mark.parametrize(("head", "status", "commit", "changes"), [
    ("abc123\n", " M main.py\n", "abc123", True), ("abc123\n", "", "abc123", False),
    (FileNotFoundError(), FileNotFoundError(), None, None), (NO_CHECKOUT, NO_CHECKOUT, None, None),
], ids=repr)  # fmt: skip
def test_the_environment_says_what_a_run_was_made_with(monkeypatch, head, status, commit, changes):
    real = subprocess.run

    def answer(words, **options):
        if words[0] != "git":
            return real(words, **options)
        assert options["cwd"] == PROJECT and options["check"]
        found = {"rev-parse HEAD": head, "status --porcelain": status}[" ".join(words[1:])]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(stdout=found)

    monkeypatch.setattr(subprocess, "run", answer)
    found = json.loads(json.dumps(describe_environment("cpu")))
    assert (found["commit"], found["uncommitted_changes"], found["cuda"]) == (commit, changes, None)
    assert found["packages"]["torch"] == torch.__version__ and all(found["packages"].values())
    assert re.fullmatch(rf"cpu \({torch.get_num_threads()} threads?\)", found["device"])
