"""The benchmark's equalities, compiling, and precision; its times are nobody's business here."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL, raising
from small_sets import put_imagenet

from args_helper import parse_args
from data.load import load_data
from models.build import build_model
from trainers.benchmark.__main__ import SETTING, compare_sides
from trainers.benchmark.__main__ import main as benchmark
from trainers.benchmark.loading import main as loading
from trainers.benchmark.loading import memory_growth
from trainers.results.run_folder import resolved
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.compile import bf16_share, prepared
from trainers.training.loop import train_step
from trainers.training.weights import WeightTraining
from utils.masks import all_kept

TINY = ["--dataset", "Digits", "--width", "0.25", "--device", "cpu", "--threads", "1"]


def small(words=""):
    return resolved(parse_args([*SMALL, "--device", "cpu", *words.split()]))


@pytest.mark.parametrize("device", ["cpu", "mps"])  # MPS has no float64: both sides are computed on the CPU
def test_the_search_computes_what_the_plain_loop_does(device):
    config = resolved(parse_args([*SETTING, *TINY]))
    found = compare_sides(config.model_copy(update={"device": device}), load_data(config))
    assert (found["steps"], found["differing_entries_of_masks"]) == (8, 0)
    assert found["relative_difference_of_losses"] < 1e-5


@pytest.fixture
def measured(tmp_path):
    """Call a benchmark in its own process; returns what it prints and what it writes."""

    def run(module, *words):
        command = [sys.executable, "-m", module, *words, "--repeats", "2", "--json", str(tmp_path / "b.json")]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads((tmp_path / "b.json").read_text())

    return run


def test_the_benchmark_runs_by_one_command_and_writes_what_it_prints(measured):
    out, found = measured("trainers.benchmark", *TINY, "--images", "300")
    assert [row["part"] for row in found["parts"]] == [
        "search step", "fine-tune step", "data batch", "pruning", "evaluation pass", "evaluation of an epoch",
        "search epoch", "fine-tune epoch",
    ]  # fmt: skip
    for row in found["parts"]:
        assert f"| {row['part']} |" in out
        for part in (row["fp32"], row["bf16"]):
            assert part["ratio_low"] <= part["ratio"] <= part["ratio_high"]
            assert part["low"] <= part["ms"] <= part["high"]
    assert {"matmul_gflops", "copy_gb_s", "peak_memory_mb", "device"} <= set(found)


@pytest.mark.parametrize(("words", "says"), [
    ("--repeats x", "--repeats: 'x' is not a whole number of at least 1"),
    ("--images -1", "--images: '-1' is not a whole number of at least 0"),
    ("--lmbda auto", "the plain loop has a fixed λ"),
    ("--bias", "--bias: the plain loop has only False"), ("--round prob", "--round: the plain loop has only naive"),
    ("--fine_tune_optimizer adam", "--fine_tune_optimizer: the plain loop has only sgd"),
    ("--algo snip", "--algo: the plain loop has only hc_iter"),
    ("--arch FC", "--arch FC: the plain loop masks convolutions only"),
    ("--only steps --data nowhere --dataset ImageFolder", "there is no part 'steps'"),
    ("--dataset ImageNet --data {}", "--dataset ImageNet: the plain loop needs a set that is held in memory"),
    ("--only pruning --json /dev/null/x.json", "error: cannot write /dev/null/x.json: "),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:ImageNet has 1000 classes")
def test_what_the_benchmark_cannot_measure_or_write_is_refused(words, says, tmp_path, capsys):
    put_imagenet(tmp_path)
    try:
        code = benchmark([*TINY, "--images", "300", "--repeats", "1", *words.format(tmp_path).split()])
    except SystemExit as stopped:  # argparse's
        code = stopped.code
    assert code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(("words", "says"), [("--repeats 0", "at least 1"), ("--images 39", "at least 40")])
def test_too_little_to_read_is_refused(words, says, capsys):
    with pytest.raises(SystemExit):
        loading(words.split())
    assert says in capsys.readouterr().err


def test_the_growth_of_memory_leaves_out_the_peak_of_the_process_that_started_this_one(monkeypatch):
    peaks = iter([4, 5, 6, 6, 7, *[8] * 19, 9])  # the kernel's `ru_maxrss` would begin at the parent's
    monkeypatch.setattr("trainers.benchmark.loading.peak_memory", lambda device: next(peaks) * 2**20)
    monkeypatch.setattr("trainers.benchmark.loading.ours", lambda root: [])
    assert memory_growth(Path("unused")) == 2.0


@pytest.mark.slow
def test_reading_photographs_is_measured_by_one_command(measured):
    out, found = measured("trainers.benchmark.loading", "--images", "120")
    assert [row["side"] for row in found["sides"]] == [
        "torchvision's ImageFolder", "the same, freed memory kept", "a folder", "packed, JPEG", "packed, raw",
    ]  # fmt: skip
    for row in found["sides"]:
        middle, low, high = row["images_a_second"]
        assert f"| {row['side']} |" in out and 0 < low <= middle <= high
    assert found["growth_of_peak_memory_mib"] >= 0 and 0 <= found["waiting_of_resnet18_percent"] <= 100
    assert found["seconds_to_first_batch_of_a_million"] > 0


@pytest.mark.parametrize(("words", "share", "compiles", "told"), [
    ("", 0.5, False, None),
    ("--epochs 100000", 1.0, True, None),
    ("--epochs 100000 --compile off", 0.5, False, "0.5 times as long as in fp32: --precision bf16 is faster"),
    ("--compile on", 1.0, True, None),
    ("--algo imp --iter_period 50000", 1.5, True, None),
    ("--algo training --fine_tune_epochs 100000", 1.0, False, None),
    ("--dry_run", 0.62, False, "0.62 times as long as in fp32: --precision bf16 is faster"),
    ("--dry_run --precision fp32", 0.5, False, None),
    ("--dry_run", 0.9, False, None),
    ("--precision bf16", 3.21, False, "3.2 times as long as in fp32: --precision fp32 is faster"),
    ("--precision bf16", 0.5, False, None),
    ("--precision bf16", 1.1, False, None),
])  # fmt: skip
def test_a_long_run_is_compiled_and_told_of_the_faster_precision(words, share, compiles, told, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: called.append(options))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr("trainers.training.compile.bf16_share", lambda: share)
    config = small(words)
    decided = prepared(config, build_model(config), load_data(config))
    assert (decided.compile, decided.config_hash) == ("on" if compiles else "off", config.config_hash)
    out = capsys.readouterr().out
    assert len(called) == compiles == ("compiling the network" in out)
    assert (told or "") in out and ("a convolution in bf16 takes" in out) == bool(told)


def test_the_share_of_bf16_is_the_median_of_pairs_after_the_first(monkeypatch):
    clock = iter([0, 9, 0, 1] + [0, 2, 0, 1] * 2 + [0, 2, 0, 3] * 3)  # begin and end in fp32, then in bf16
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert bf16_share() == 1.5


REFUSE = raising(RuntimeError("CompileError: C++ compile error\n\nCommand:\ng++ main.cpp"))
FAILED = r"a tiny function failed to compile: CompileError: C\+\+ compile error Command: g"


@pytest.mark.parametrize(("device", "fakes", "reason"), [
    ("cuda", {"capability": (6, 1)}, r"the GPU has compute capability 6\.1, and Triton needs 7\.0"),
    ("cuda", {"find_spec": None}, "triton is not installed"),
    ("cuda", {"which": None}, r"there is no C compiler \(gcc, clang, \$CC\)"),
    ("cpu", {"which": None}, r"there is no C\+\+ compiler"),
    ("cuda", {"compile": REFUSE}, FAILED),
    ("cpu", {"compile": REFUSE}, FAILED),
    ("mps", {}, "no compiler is known for mps here"),
    ("cuda", {}, None),
    ("cpu", {}, None),
])  # fmt: skip
def test_whether_a_device_can_compile_is_decided_by_trying(device, fakes, reason, monkeypatch):
    config, compiled, ones = small("--compile on"), [], torch.ones
    net, data = build_model(config), load_data(config)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: fakes.get("capability", (7, 0)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: fakes.get("find_spec", name))
    monkeypatch.setattr("shutil.which", lambda name: fakes.get("which", name))
    monkeypatch.setattr(torch, "compile", fakes.get("compile", lambda function: function))
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    monkeypatch.setattr(net, "compile", lambda **options: compiled.append(options))
    with warnings.catch_warnings(record=True, action="always") as said:
        decided = prepared(config.model_copy(update={"device": device}), net, data)
    assert decided.compile == ("off" if reason else "on")
    mode = "reduce-overhead" if device == "cuda" else None
    assert compiled == ([] if reason else [{"dynamic": False, "mode": mode}])
    assert len(said) == (1 if reason else 0)
    assert not reason or re.fullmatch(f"networks are not compiled: {reason}.*", str(said[0].message))


def _losses(words, batch_sizes):
    """The losses of some steps, and the sizes that reach a compiled network."""
    config = small("--batch_size 16 " + words)
    data, net = load_data(config), build_model(config)
    prepared(config, net, data)
    ticket = Ticket({n: v.clone() for n, v in net.state_dict().items()}, all_kept(dict(net.named_parameters())))
    training = WeightTraining(net.train(), ticket, Recipe.of_tuning(config))
    training.full_batch = 16
    draw, losses = torch.Generator().manual_seed(0), []
    for size in batch_sizes:
        images = torch.randn(size, 1, 8, 8, generator=draw)
        labels = torch.randint(10, (size,), generator=draw)
        losses.append(float(train_step(training, 0, images, labels)[0]) / size)
    return losses


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_and_is_compiled_for_full_batches_only():
    torch._dynamo.reset()
    plain, compiled = (_losses(f"--arch Conv2 --width 0.1 --compile {how}", (16, 16, 5)) for how in ("off", "on"))
    assert compiled == pytest.approx(plain, rel=1e-5)
    counts = torch._dynamo.utils.counters["stats"]
    assert counts["unique_graphs"] == 2  # the other one is of the tiny function that tries the compiler


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_a_run_goes_to_its_end_compiled_or_with_one_warning_of_a_broken_compiler(broken, places, tmp_path):
    compiler = tmp_path / "g++"
    cases = '*version*) echo "g++ (GCC) 13.2.0";; *) echo no cc1plus >&2; exit 1;;'
    compiler.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    compiler.chmod(0o755)
    own = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} if broken else {}
    words = "--arch Conv2 --width 0.1 --epochs 2 --fine_tune_epochs 1 --compile on".split()
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", *SMALL, *words, *places],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **own},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("compiling the network for cpu" in done.stdout) != broken
    assert done.stderr.count("networks are not compiled: a tiny function failed to compile") == broken
    assert (tmp_path / "results" / "trial_1" / "summary.json").exists()


def test_mixed_precision_is_close_to_single_and_keeps_weights_and_losses_single():
    with warnings.catch_warnings(action="error"):
        single, mixed = (_losses(f"--precision {precision}", (16, 16)) for precision in ("fp32", "bf16"))
    assert mixed != single
    assert mixed == pytest.approx(single, rel=0.05)
