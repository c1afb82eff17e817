"""The benchmark's equalities, compiling, and precision; its times are nobody's business here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT, SMALL

from args_helper import parse_args
from data.load import load_data
from models.build import build_model
from trainers.benchmark.__main__ import SETTING, compare_figures
from trainers.results.run_folder import resolved
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.compile import prepared
from trainers.training.loop import train_step
from trainers.training.weights import WeightTraining
from utils.masks import all_kept

TINY = ["--dataset", "Digits", "--width", "0.25", "--device", "cpu", "--threads", "1"]


def test_the_search_computes_what_the_plain_loop_does() -> None:
    config = resolved(parse_args([*SETTING, *TINY]))
    found = compare_figures(config, load_data(config))
    assert found["steps"] == 8
    assert found["relative_difference_of_losses"] < 1e-5
    assert found["differing_places_of_masks"] == 0


def test_the_benchmark_runs_by_one_command_and_writes_what_it_prints(tmp_path: Path) -> None:
    words = ["-m", "trainers.benchmark", *TINY, "--repeats", "2", "--images", "300", "--json", tmp_path / "b.json"]
    done = subprocess.run([sys.executable, *map(str, words)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    parts = [row["part"] for row in found["parts"]]
    assert parts == [
        "search step",
        "fine-tune step",
        "data batch",
        "pruning",
        "evaluation pass",
        "evaluation of an epoch",
        "search epoch",
    ]
    for row in found["parts"]:
        assert f"| {row['part']} |" in done.stdout
        for precision in ("fp32", "bf16"):
            found_here = row[precision]
            assert found_here["ratio_low"] <= found_here["ratio"] <= found_here["ratio_high"]
            assert found_here["low"] <= found_here["ms"] <= found_here["high"]
    assert {"matmul_gflops", "copy_gb_s", "peak_memory_mb", "device"} <= set(found)


@pytest.mark.parametrize(
    ("words", "compiles"),
    [
        ("", False),
        ("--epochs 100000", True),
        ("--epochs 100000 --compile off", False),
        ("--compile on", True),
        ("--algo imp --iter_period 50000", True),
        ("--algo training --fine_tune_epochs 100000", False),
    ],
)
def test_a_network_is_compiled_when_asked_or_when_the_run_is_long(
    words: str, compiles: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: called.append(options))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    config = resolved(parse_args([*SMALL, "--device", "cpu", *words.split()]))
    data = load_data(config)
    decided = prepared(config, build_model(config), data)
    assert decided.compile == ("on" if compiles else "off")
    assert len(called) == compiles == ("compiling the network" in capsys.readouterr().out)
    assert decided.config_hash == config.config_hash


@pytest.mark.parametrize(
    ("able", "words", "told"),
    [
        ({"avx512_bf16": True}, "--epochs 100000 --compile off", True),
        ({"amx_bf16": True}, "--dry_run", True),
        ({"avx512_bf16": True}, "", False),
        ({"avx512_bf16": True}, "--dry_run --precision fp32", False),
        ({"avx512_bf16": False}, "--dry_run", False),
        ({}, "--dry_run", False),
    ],
)
def test_a_long_run_and_a_plan_tell_of_a_processor_with_bf16(
    able: dict[str, bool], words: str, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    config = resolved(parse_args([*SMALL, "--device", "cpu", *words.split()]))
    prepared(config, build_model(config), load_data(config))
    assert ("this processor has bf16: --precision bf16 takes about 0.7" in capsys.readouterr().out) == told


def test_without_a_compiler_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    config = resolved(parse_args([*SMALL, "--device", "cpu", "--compile", "on"]))
    with pytest.warns(UserWarning, match=r"networks are not compiled: there is no C\+\+ compiler") as said:
        assert prepared(config, build_model(config), load_data(config)).compile == "off"
    assert len(said) == 1


def _refuse(_function: object) -> object:
    raise RuntimeError("CompileError: C++ compile error\n\nCommand:\ng++ main.cpp")


@pytest.mark.parametrize(
    ("device", "fakes", "reason"),
    [
        ("cuda", {"capability": (6, 1)}, r"the GPU has compute capability 6\.1, and Triton needs 7\.0"),
        ("cuda", {"find_spec": None}, "triton is not installed"),
        ("cuda", {"which": None}, r"there is no C compiler \(gcc, clang, \$CC\)"),
        (
            "cuda",
            {"compile": _refuse},
            r"a tiny function failed to compile: CompileError: C\+\+ compile error Command: g",
        ),
        (
            "cpu",
            {"compile": _refuse},
            r"a tiny function failed to compile: CompileError: C\+\+ compile error Command: g",
        ),
        ("mps", {}, "no compiler is known for mps here"),
        ("cuda", {}, None),
        ("cpu", {}, None),
    ],
)
def test_whether_a_device_can_compile_is_decided_by_trying(
    device: str, fakes: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved(parse_args([*SMALL, "--device", "cpu", "--compile", "on"]))
    net, data, compiled, ones = build_model(config), load_data(config), [], torch.ones
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: fakes.get("capability", (7, 0)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: fakes.get("find_spec", name))
    monkeypatch.setattr("shutil.which", lambda name: fakes.get("which", name))
    monkeypatch.setattr(torch, "compile", fakes.get("compile", lambda function: function))
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    monkeypatch.setattr(net, "compile", lambda **options: compiled.append(options))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        decided = prepared(config.model_copy(update={"device": device}), net, data)
    assert decided.compile == ("off" if reason else "on")
    mode = "reduce-overhead" if device == "cuda" else None
    assert compiled == ([] if reason else [{"dynamic": False, "mode": mode}])
    assert len(said) == (1 if reason else 0)
    assert not reason or re.fullmatch(f"networks are not compiled: {reason}.*", str(said[0].message))


def _losses(config, batch_sizes=(16, 16, 5)) -> tuple[list[float], list[int]]:
    """The losses of some steps, the last batch a short one, and the sizes that reach a compiled network."""
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
def test_a_compiled_network_computes_the_same_and_is_compiled_for_full_batches_only() -> None:
    words = [*SMALL, "--device", "cpu", "--arch", "Conv2", "--width", "0.1", "--batch_size", "16"]
    torch._dynamo.reset()
    plain = _losses(resolved(parse_args([*words, "--compile", "off"])))
    compiled = _losses(resolved(parse_args([*words, "--compile", "on"])))
    assert compiled == pytest.approx(plain, rel=1e-5)
    counts = torch._dynamo.utils.counters["stats"]
    assert counts["unique_graphs"] == 2  # the other one is of the tiny function that tries the compiler


@pytest.mark.slow
def test_a_compiled_run_goes_to_its_end(tmp_path: Path) -> None:
    words = [*SMALL, "--arch", "Conv2", "--width", "0.1", "--epochs", "2", "--fine_tune_epochs", "1", "--compile", "on"]
    place = ["--results_dir", tmp_path / "results", "--log_dir", tmp_path / "runs"]
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", *words, *map(str, place)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiling the network for cpu" in done.stdout
    assert (tmp_path / "results" / "trial_1" / "summary.json").exists()


@pytest.mark.slow
def test_a_broken_compiler_is_a_warning_and_the_run_goes_to_its_end(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *version*) echo "g++ (GCC) 13.2.0";; *) echo no cc1plus >&2; exit 1;; esac\n'
    )
    compiler.chmod(0o755)
    words = [*SMALL, "--algo", "random", "--fine_tune_epochs", "1", "--skip_sanity_checks", "--compile", "on"]
    place = ["--results_dir", tmp_path / "results", "--log_dir", tmp_path / "runs"]
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", *words, *map(str, place)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("networks are not compiled: a tiny function failed to compile") == 1
    assert "compiling the network" not in done.stdout
    assert (tmp_path / "results" / "trial_1" / "summary.json").exists()


def test_mixed_precision_is_close_to_single_and_keeps_weights_and_losses_single() -> None:
    words = [*SMALL, "--device", "cpu", "--batch_size", "16"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = _losses(resolved(parse_args(words)), (16, 16))
        mixed = _losses(resolved(parse_args([*words, "--precision", "bf16"])), (16, 16))
    assert mixed != single
    assert mixed == pytest.approx(single, rel=0.05)
