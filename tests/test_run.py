"""A run on disk, its display, its optimizers and its machine."""

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import nn

from args_helper import parse_args
from tests.conftest import SMALL
from trainers.benchmark import __main__ as benchmark
from trainers.results.run_folder import resolved
from trainers.sweeping.units import Unit
from trainers.training.optim import build_optimizer, decay_groups, flat_gradients
from utils.distributed.launch import Launch
from utils.environment import be_deterministic, choose_device, describe_environment, device_name
from utils.errors import Stopped, UserError
from utils.rng import derive_rng
from utils.run.progress import Progress
from utils.run.run import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", tmp_path / "log", seed=42)


def first_draws(generator, count=4):
    return torch.rand(count, generator=generator).tolist()


# ---- randomness ----------------------------------------------------------------------------------------------------


def test_a_generator_is_a_pure_function_of_its_path(run):
    wanted = first_draws(derive_rng(42, "search", "batches", 3, 0))
    torch.manual_seed(5)
    elsewhere = torch.get_rng_state()
    first_draws(run.rng("search", "noise", 3), 1000)  # what others draw moves nothing
    assert first_draws(derive_rng(42, "search", "batches", 3, 0)) == wanted
    assert first_draws(run.rng("search", "batches", 3)) == wanted
    assert torch.equal(torch.get_rng_state(), elsewhere)


def test_streams_stay_what_they_are_so_that_old_runs_can_be_repeated():
    assert derive_rng(42, "search", "batches", 3, 0).initial_seed() == 1100062780936776333


def test_every_part_of_the_path_makes_another_stream(tmp_path, run):
    streams = [run.rng(stage, stream) for stage in ("search", "finetune", "search/round_3") for stream in ("a", "b")]
    streams += [run.rng("search", "a", epoch) for epoch in (1, 2, 10)]
    streams += [run.rng("search", "a", epoch, step) for epoch in (0, 1) for step in (1, 2)]
    streams += [Run(tmp_path, tmp_path, seed).rng("search", "a") for seed in (0, 1, 43)]
    draws = torch.stack([torch.randn(2000, generator=stream) for stream in streams])
    off_diagonal = torch.corrcoef(draws) - torch.eye(len(streams))
    assert off_diagonal.abs().max() < 0.12  # five standard deviations


# ---- checkpoints ---------------------------------------------------------------------------------------------------

STATE = {
    "network": {"weight": torch.randn(3, 4, dtype=torch.float64), "flag": torch.tensor([True, False])},
    "rows": [{"epoch": 0, "val_acc": None, "phase": "search", "test_acc": 12.5}],
    "done": False,
}


def test_what_was_saved_of_a_stage_is_what_is_loaded(run):
    assert run.load("search") is None
    run.save("search", STATE)
    run.save("check/mask_shuffle", {"other": 1})
    found = Run(run.folder, run.log_folder, seed=42).load("search")
    for name, tensor in STATE["network"].items():
        assert torch.equal(found["network"][name], tensor) and found["network"][name].dtype == tensor.dtype
    assert {**found, "network": None} == {**STATE, "network": None}
    assert run.load("check/mask_shuffle") == {"other": 1}
    assert run.load("check/weight_reinit") is None
    run.save("search", {"epoch": 1})
    assert run.load("search") == {"epoch": 1}


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_loading_a_checkpoint_runs_no_code_in_it(run, tmp_path):
    run.save("search", {"network": Intruder(tmp_path / "intruder")})
    with pytest.raises(UserError, match="cannot be read"):
        run.load("search")
    assert not (tmp_path / "intruder").exists()


# ---- rows ----------------------------------------------------------------------------------------------------------


def rows(phase, count, first=0):
    return [
        {"phase": phase, "epoch": epoch, "val_acc": None, "test_acc": 10.5 + epoch, "seconds": 2.0}
        for epoch in range(first, first + count)
    ]


def table(path):
    with path.open(newline="") as file:
        return [(row["phase"], int(row["epoch"])) for row in csv.DictReader(file)]


def test_a_table_is_rewritten_whole_search_first(run):
    path = run.folder / "acc_and_sparsity.csv"
    run.record("search", [])
    assert not path.exists()
    run.record("search", rows("search", 1))
    assert path.read_text() == "phase,epoch,val_acc,test_acc,seconds\nsearch,0,,10.5,2.0\n"
    run.record("search", rows("search", 2))
    run.record("finetune", rows("finetune", 1))
    run.record("finetune", rows("finetune", 2))
    run.record("search", rows("search", 2))
    assert table(path) == [("search", 0), ("search", 1), ("finetune", 0), ("finetune", 1)]
    assert run.rows("search") == rows("search", 2)
    assert run.rows("check/mask_shuffle") == []


@pytest.mark.parametrize(
    ("name", "beside"),
    [("acc_and_sparsity.csv", "acc_and_sparsity_mask_shuffle.csv"), ("my.csv", "my_mask_shuffle.csv")],
)
def test_a_check_has_a_table_of_its_own(tmp_path, name, beside):
    run = Run(tmp_path, tmp_path, 1, name)
    run.record("finetune", rows("finetune", 1))
    run.record("check/mask_shuffle", rows("check/mask_shuffle", 2))
    assert table(tmp_path / name) == [("finetune", 0)]
    assert table(tmp_path / beside) == [("check/mask_shuffle", 0), ("check/mask_shuffle", 1)]
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_that_were_taken_do_not_change_with_their_list(run):
    given = rows("search", 1)
    run.record("search", given)
    given.append(None)
    assert run.rows("search") == rows("search", 1)


def fail(*_args, **_options):
    raise OSError(28, "No space left on device")


def test_a_table_that_cannot_be_written_stays_as_it_was(run, monkeypatch):
    run.record("search", rows("search", 1))
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*acc_and_sparsity\.csv: No space left"):
        run.record("search", rows("search", 2))
    assert table(run.folder / "acc_and_sparsity.csv") == [("search", 0)]


def test_seconds_are_summed_over_stages_and_what_is_under_them(run):
    for stage, count in {"search": 1, "search/round_3": 2, "search_other": 4, "check/a": 8, "check/b": 16}.items():
        run.record(stage, rows(stage, count))
    assert run.seconds("search") == 2.0 * (1 + 2)
    assert run.seconds("check") == 2.0 * (8 + 16)
    assert run.seconds("check/a") == 2.0 * 8
    assert run.seconds("search", "search/round_3", "check") == 2.0 * (1 + 2 + 8 + 16)
    assert run.seconds("finetune") == 0


# ---- events --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch):
    """Event files are read in the order of the seconds in their names: let each have a second of its own."""
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(seconds)))


def events(folder):
    return EventAccumulator(str(folder), {"histograms": 0}).Reload()  # 0: all of them


def logged(run, stage, epochs, factor=1.0):
    with run.until_stopped():
        for epoch in epochs:
            run.log(stage, epoch, {"accuracy/test": factor * epoch}, {"scores": torch.arange(4.0)})


@pytest.mark.usefixtures("ticking")
def test_every_stage_has_events_of_its_own(run):
    logged(run, "search", range(2))
    logged(run, "check/mask_shuffle", range(3))
    for stage, epochs in (("search", [0, 1]), ("check/mask_shuffle", [0, 1, 2])):
        found = events(run.log_folder / stage)
        assert [(event.step, event.value) for event in found.Scalars("accuracy/test")] == [(e, e) for e in epochs]
        assert [event.step for event in found.Histograms("scores")] == epochs
        assert found.Histograms("scores")[0].histogram_value.sum == 6.0


@pytest.mark.parametrize("same", [False, True], ids=["in a new process", "in the same one"])
@pytest.mark.usefixtures("ticking")
def test_events_of_epochs_that_are_run_again_take_the_place_of_the_old_ones(run, same):
    logged(run, "search", range(5))
    logged(run if same else Run(run.folder, run.log_folder, seed=42), "search", (3, 4, 5), factor=100.0)
    found = [(event.step, event.value) for event in events(run.log_folder / "search").Scalars("accuracy/test")]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 300), (4, 400), (5, 500)]


@pytest.mark.usefixtures("ticking")
def test_a_stage_begun_again_at_epoch_0_drops_all_its_events(run):
    logged(run, "search", range(3))
    logged(Run(run.folder, run.log_folder, seed=42), "search", (0,), factor=100.0)
    assert [event.step for event in events(run.log_folder / "search").Scalars("accuracy/test")] == [0]


@pytest.mark.usefixtures("ticking")
def test_an_epochs_events_are_on_disk_before_the_next_one_begins(run):
    with run.until_stopped():
        run.log("search", 0, {"lr": 0.1}, {})
        assert [event.step for event in events(run.log_folder / "search").Scalars("lr")] == [0]
        assert run._writer("search") is run._writer("search")


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
    assert str(raised.value) == (
        f"stopped by {signal.Signals(signum).name}; go on with: python main.py --resume {run.folder}"
    )


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(run, second):
    with pytest.raises(KeyboardInterrupt), run.until_stopped():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(second)
        pytest.fail("the second signal was not heeded")


@pytest.mark.parametrize("error", [None, UserError("no"), KeyboardInterrupt()], ids=repr)
def test_signals_go_where_they_went_before_when_the_run_is_left(run, error):
    def own(_signum, _frame):
        pass

    before = {name: signal.signal(name, own) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            with run.until_stopped():
                assert own not in (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
                if error:
                    raise error
        except type(error or UserError()):
            pass
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is own
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


# ---- the display ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stderr, refresh_every=5):
    """What stands on stderr after a stage of 2 epochs of 10 steps, gone on with at step 3 of the first."""
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress("search", 2, 10, refresh_every) as progress:
        for epoch in range(2):
            for step in range(3 if epoch == 0 else 0, 10):
                progress.at(epoch, step)
            progress.epoch_done(epoch, {"loss": f"0.{epoch}", "test": "9%"})
    return stderr.getvalue()


def test_where_there_is_no_terminal_an_epoch_is_one_plain_line(monkeypatch, capsys):
    assert shown(monkeypatch, io.StringIO()) == ""
    assert capsys.readouterr().out == "search 1/2  loss 0.0  test 9%\nsearch 2/2  loss 0.1  test 9%\n"


def test_a_terminal_shows_a_bar_that_goes_on_from_where_the_stage_was(monkeypatch, capsys):
    bar = shown(monkeypatch, Terminal(), refresh_every=1)
    assert capsys.readouterr().out == ""
    assert bar.rpartition("\r")[2].startswith("search: 100%")
    assert "20/20" in bar and "loss=0.1" in bar and "test=9%" in bar
    assert " 3/20" in bar and " 13/20" in bar and " 21/20" not in bar
    assert " 1/20" not in bar


def test_the_bar_is_not_drawn_at_every_step(monkeypatch):
    draws = [shown(monkeypatch, Terminal(), every).count("\r") for every in (1, 10)]
    assert draws[1] < draws[0] / 2


# ---- optimizers ----------------------------------------------------------------------------------------------------


def stepped(name, gradients, groups=None, **options):
    """A parameter that begins as 1, after each of some gradients; weight decay 0.01 unless groups say otherwise."""
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = build_optimizer(name, groups or [{"params": [parameter], "weight_decay": 0.01}], lr=0.1, **options)
    values = []
    for gradient in gradients:
        parameter.grad = torch.full((1,), gradient, dtype=torch.float64)
        optimizer.step()
        values.append(parameter.item())
    return values


@pytest.mark.parametrize(
    ("options", "values"),
    [
        # The decayed gradient of the first step is 0.5 + 0.01; with momentum, of the second, -0.2 + 0.01 w and
        # 0.9 · 0.51 from before; Nesterov's looks ahead by 0.9 of the new momentum.
        ({}, [0.949, 0.968051]),
        ({"momentum": 0.9}, [0.949, 0.922151]),
        ({"momentum": 0.9, "nesterov": True}, [0.9031, 0.89807411]),
    ],
    ids=str,
)
def test_sgd_steps_as_computed_by_hand(options, values):
    assert stepped("sgd", [0.5, -0.2], **options) == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_adam_adds_its_weight_decay_to_the_gradient(options):
    wanted, value, first, second = [], 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.0, 0.3, -0.4), start=1):
        coupled = gradient + 0.01 * value
        first, second = 0.9 * first + 0.1 * coupled, 0.999 * second + 0.001 * coupled**2
        value -= 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
        wanted.append(value)
    assert wanted[0] == pytest.approx(0.9, abs=1e-6)  # decoupled, a gradient of 0 would move it by 0.001 only
    assert stepped("adam", (0.0, 0.3, -0.4), **options) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_every_group_has_its_own_weight_decay_and_may_be_given_by_an_iterator(name):
    decayed, spared = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = ({"params": iter([p]), "weight_decay": wd} for p, wd in ((decayed, 0.5), (spared, 0.0)))
    optimizer = build_optimizer(name, groups, lr=0.1)
    decayed.grad, spared.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert (decayed < 1).all()
    assert (spared == 1).all()


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
    torch.testing.assert_close(
        single.sort().values, torch.cat([p.detach().flatten() for p in parameters[:2]]).sort().values
    )
    assert torch.equal(double, parameters[2].detach())


NETWORK = nn.Sequential(
    nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.LayerNorm(2)
)


def grouped(*options):
    names = {id(parameter): name for name, parameter in NETWORK.named_parameters()}
    groups = decay_groups(NETWORK, *options)
    return [({names[id(parameter)] for parameter in group["params"]}, group["weight_decay"]) for group in groups]


def test_all_parameters_decay_unless_asked_otherwise():
    assert grouped(0.3) == [({name for name, _ in NETWORK.named_parameters()}, 0.3)]


def test_batch_norm_parameters_are_spared_the_decay_if_asked():
    spared = {"1.weight", "1.bias", "2.1.weight", "2.1.bias"}
    everything = {name for name, _ in NETWORK.named_parameters()}
    assert grouped(0.3, True) == [(everything - spared, 0.3), (spared, 0.0)]


def test_a_network_without_batch_norm_is_one_group():
    layer = nn.Linear(2, 2)
    (group,) = decay_groups(layer, 0.3, True)
    assert group == {"params": list(layer.parameters()), "weight_decay": 0.3}


# ---- the machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "gpu", "no_cuda", "gpus", "chosen"),
    [
        ("auto", 0, False, 0, "cpu"),
        ("auto", 0, False, 1, "cuda"),
        ("auto", 1, False, 2, "cuda"),
        ("auto", 1, False, 1, "cpu"),
        ("auto", 0, True, 1, "cpu"),
        ("cpu", 0, False, 1, "cpu"),
        ("cuda", 1, False, 2, "cuda"),
        ("cuda", 0, True, 1, "cuda"),  # `device` beats `no_cuda`
    ],
)
def test_the_device_is_the_one_wanted_or_the_gpu_that_is_there(monkeypatch, wanted, gpu, no_cuda, gpus, chosen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(wanted, gpu, no_cuda) == chosen


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device cuda: there is no GPU number 2 here; give --gpu 0 or --device cpu$"):
        choose_device("cuda", 2, False)
    with pytest.raises(UserError, match=r"^device mps: there is none here; give --device cpu$"):
        choose_device("mps", 0, False)
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


@pytest.mark.parametrize(
    "mode",
    ["", "--dry_run", "--evaluate --pretrained a.pt", "--evaluate --pretrained a.pt --compare_rounding",
     "--mode_connect --pretrained a.pt --pretrained2 b.pt", "--export"],
)  # fmt: skip
def test_the_gpu_is_made_the_process_s_own_before_anything_comes_to_it(mode, two_gpus, call, places, tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    words = [tmp_path / word if word.endswith(".pt") else word for word in mode.split()]
    outcome = call(*SMALL, *places, *words, "--device", "cuda", "--gpu", 1)
    assert (outcome.code, outcome.err) == (2, "error: as far as this goes\n")
    assert two_gpus == ["set cuda:1", "data to cuda:1"]


def test_the_benchmark_makes_its_gpu_its_own_first(two_gpus, capsys):
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


@pytest.fixture
def git(monkeypatch):
    """What git answers, by its words; an exception is raised."""
    answers, real = {}, subprocess.run

    def answer(words, **options):
        if words[0] != "git":
            return real(words, **options)
        assert options["cwd"] == Path(__file__).resolve().parent.parent and options["check"]
        found = answers[" ".join(words[1:])]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(stdout=found)

    monkeypatch.setattr(subprocess, "run", answer)
    return answers


def test_the_environment_says_what_a_run_was_made_with(git):
    git.update({"rev-parse HEAD": "abc123\n", "status --porcelain": " M main.py\n"})
    found = json.loads(json.dumps(describe_environment("cpu")))
    assert (found["commit"], found["uncommitted_changes"], found["cuda"]) == ("abc123", True, None)
    assert found["packages"]["torch"] == torch.__version__
    assert all(found["packages"].values())
    assert found["device"] == device_name("cpu") == f"cpu ({torch.get_num_threads()} threads)"
    git["status --porcelain"] = ""
    assert describe_environment("cpu")["uncommitted_changes"] is False


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.CalledProcessError(128, "git")], ids=repr)
def test_without_git_the_commit_is_unknown(git, error):
    git.update({"rev-parse HEAD": error, "status --porcelain": error})
    assert describe_environment("cpu")["commit"] is None
