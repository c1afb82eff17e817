"""Sweeps: what their files may say, who takes which run, what a search finds, and whole sweeps by one worker or two."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from math import log10
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PROJECT, epoch_row, read_rows, same_bits, start, summary_of, timeless
from safetensors.torch import save_file

import main
from args_helper import OPTIONS, config_of, parse_args
from trainers.sweeping import worker
from trainers.sweeping.config_files import write_found
from trainers.sweeping.grid import Trials
from trainers.sweeping.metrics import is_below_median, misses_target
from trainers.sweeping.plan import SearchSpace, plan
from trainers.sweeping.sweep_file import Sweep, runs_of
from trainers.sweeping.units import Claims, Unit
from utils.errors import Stopped, UserError
from utils.files import write_csv, write_json
from utils.options.parser import SWEEP_KEYS
from utils.run.lock import Claim

TINY = {
    "arch": "FC", "hidden_size": 32, "threads": 1, "compile": "off", "batch_size": 64, "epochs": 4, "iter_period": 1,
    "fine_tune_epochs": 1, "target_sparsity": 20, "prune_type": "BottomK", "hc_quantized": True,
    "init": "signed_constant", "lr": 0.1, "wd": 0, "regularization": "L2", "skip_sanity_checks": True,
}  # fmt: skip
LAMBDA = {"lmbda": {"low": "1e-6", "high": "1e-2", "log": True}}


@pytest.fixture
def sweep(tmp_path, places):
    """Write a sweep; returns the words of its command."""

    def write(**content):
        path = tmp_path / "s.yml"
        path.write_text(yaml.safe_dump({"runs": {"a": None}, **content}, sort_keys=False))
        return ["--sweep", str(path), *places]

    return write


@pytest.fixture
def in_process(monkeypatch):
    """Runs are run in this process, which has imported everything already."""

    def run(task, options, _asked):
        folder = task.unit.folder
        resume = ["--resume", str(folder)] if (folder / "config.yml").is_file() else []
        return main.main(["--config", str(options), *resume]), False

    monkeypatch.setattr(worker, "run_process", run)


# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((PROJECT / "configs" / "sweeps").glob("*.yml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_project_names_its_command_and_has_runs_that_can_be_run(path):
    assert f"#   python main.py --sweep {path.relative_to(PROJECT)}\n" in path.read_text()
    runs = {name: config_of(options, name) for name, options in runs_of(path)}
    assert len({run.config_hash for run in runs.values()}) == len(runs)
    assert [run.name for run in plan(path, {})[0]] == list(runs)


@pytest.mark.parametrize(("content", "said"), [
    ({"runs": {"a": {"lrr": 1}}}, "lrr (FILE, a): no such option; did you mean 'lr: 1'?"),
    ({"runs": {"a": {}, "b": {}, "c": {}}, "options": {"lr": -1}}, "above 0 (and in 2 other runs)"),
    ({"option": {}}, "option: no such key; allowed: options, vary, search, study, runs; did you mean 'options'?"),
    ({"search": {"lambda": [1, 2]}}, "search.lambda: no such option; did you mean 'lmbda'?"),
    ({"search": {"lmbda": {"low": 1}}}, "search.lmbda.high: is missing"),
    ({"search": {"lmbda": {"min": 1}}}, "search.lmbda.min: no such key; allowed: low, high, log"),
    ({"search": {"lmbda": 1}}, "search.lmbda: has to be a mapping of low, high, log, or a list of values"),
    ({"runs": {"a": [1]}}, "runs.a: has to be a mapping of options to values"),
    ({"study": {"trials": 0, "pruner": "x"}}, "study.trials: 0 is too small: it has to be at least 1"),
    ("lr: 0.1", "--sweep FILE: it is the config of one run: --config FILE"),
    ({"search": {"lmbda": {"low": 1, "high": "1e-3"}}}, "search.lmbda: low 1 has to be below high 1e-3"),
    ({"search": {"lmbda": {"low": 0, "high": 1, "log": True}}}, "low has to be above 0 on a log scale, not 0"),
    ({"search": {"optimizer": ["sgd", "adm"]}}, "'adm' is not one of sgd, adam; did you mean 'optimizer: adam'?"),
    ({"search": {"optimizer": {"low": "adam", "high": "sgd"}}}, "low and high are for numbers"),
    ({"search": {"lr": [0.1, "1e-1"]}}, "search.lr: a value stands there twice"),
    ({"search": LAMBDA, "vary": {"lmbda": [1]}}, "search.lmbda: stands in vary as well"),
    ({"vary": {"lr": [0.1, 0.2, 0.1]}, "runs": {"a": {}}}, "vary: a value stands there twice, in a/lr_0.1"),
    ({"search": {"name": ["x", "y"]}}, "search.name: there is nothing to be found"),
    ({"search": {"seed": [1, 2]}}, "search.seed: there is nothing to be found"),
    ({"search": {"epochs": [6, 12]}}, "with another epochs an epoch is not comparable"),
    ({"search": {"fine_tune_lr": [0.1, 1]}}, "fine_tune_lr does not affect the accuracy before training"),
    ({"search": {"teacher": ["x", "y"]}}, "teacher does not affect the accuracy before training"),
    (
        {"search": {"lr": [0.1, 1]}, "options": {"algo": "snip"}, "study": {"metric": "val_acc_after_finetune"}},
        "lr is not used by snip, which only fine-tunes",
    ),
    ({"search": LAMBDA, "study": {"seed": 42}}, "study.seed 42 is the seed of a trial"),
    ({"search": LAMBDA, "options": {"use_full_data": True}}, "use_full_data holds out no validation images"),
    ({"search": {"lr": [1, 2]}, "options": {"algo": "snip"}}, "study.metric: val_acc_after_finetune"),
    ({"study": {"trials": 3}}, "study: there is no search for it to go by"),
    ({"runs": {}}, "runs: needs at least 1"),
    ({"runs": {"a": {"name": "x"}, "b": {"name": "x"}}}, "b: its trials would lie where those of a do"),
    ({"runs": {"a": {"report": ["x"]}}}, "a: report is not for a sweep, which runs new trials"),
    ({"options": {"config": "x.yml"}}, "a: config is not for a sweep, which runs new trials: leave it out"),
    ({"runs": {"a": None, "b": {"evaluate": True, "ticket": "x"}}}, "b: evaluate is not for a sweep"),
    ("runs:\n  a: {lr: 0.1}\n  a: {lr: 0.2}", "FILE:3: a stands there twice"),
    ("runs: {a: {bn-type: x, bn_type: y}}", "bn_type is given twice, in two spellings"),
    ("runs: {a: &one {lr: 0.1, lr: 0.2}, b: *one}", "FILE:1: lr stands there twice"),
    (
        {
            "search": {"prune_rate": [0.2, 0.5]},
            "options": {"algo": "imp"},
            "study": {"metric": "val_acc_after_finetune"},
        },
        "with another prune_rate an epoch is not comparable",
    ),
    ("[1]", "the file: "),
    ("runs: {[1]: {}}", "cannot read the sweep FILE: found unhashable key"),
    ("runs: !!int ''", "cannot read the sweep FILE: "),
    ("runs: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag"),
])  # fmt: skip
def test_what_is_wrong_with_a_sweep_is_said_before_anything_runs(content, said, sweep, refusal, tmp_path):
    words = sweep(**(content if isinstance(content, dict) else {}))
    if isinstance(content, str):
        Path(words[1]).write_text(content)
    assert said in refusal(*words).replace(words[1], "FILE")
    assert [one.name for one in tmp_path.iterdir()] == ["s.yml"]


def test_a_config_file_is_told_from_a_sweep_by_the_keys_that_a_sweep_has():
    assert set(SWEEP_KEYS) == set(Sweep.model_fields) and not set(SWEEP_KEYS) & set(OPTIONS)


def test_names_of_runs_and_texts_stay_as_they_are_written(sweep):
    words = sweep()
    Path(words[1]).write_text(
        "options: {batch_size: 1_0}\nvary: {run-idx: [&own 1_44, 0x1F]}\n"
        "runs: {1_44: {data: 2022-02-24}, 010: {data: *own}, yes: {epochs: *own}}"
    )
    runs, _ = plan(Path(words[1]), {})
    idx = ("1_44", "0x1F")
    assert [run.name for run in runs] == [f"{name}/run_idx_{one}" for name in ("1_44", "010", "yes") for one in idx]
    assert [run.config.run_idx for run in runs] == [*idx] * 3
    assert [run.config.data for run in runs[:4:2]] == ["2022-02-24", "1_44"]
    assert {(run.config.batch_size, run.config.epochs) for run in runs[4:]} == {(10, 144)}


def test_a_config_beside_a_sweep_is_refused_as_it_would_override_what_the_runs_differ_in(sweep, refusal):
    words = [*sweep(), "--config", PROJECT / "configs/quickstart.yml", "--dry_run"]
    assert "a sweep has its options in" in refusal(*words)
    assert refusal(*sweep(runs={"a": None, "b": None}), "--name", "c").startswith("error: --name: the runs of a sweep")


def test_what_a_run_or_a_flag_states_however_it_is_written_is_neither_varied_nor_searched(sweep):
    words = sweep(
        options={"epochs": 8},
        vary={"target-sparsity": [5, 20], "width_mult": ["1e0", 2]},
        search={**LAMBDA, "iter-start": {"low": 0, "high": 2}, "optimizer": ["sgd", "adam"]},
        runs={
            "a": None,
            "fixed": {"lmbda": 1e-3, "iter-start": 0, "optimizer": "sgd", "target-sparsity": 10, "width_mult": 1},
        },
    )
    runs, _ = plan(Path(words[1]), {"target_sparsity": 50.0, "width": 1.0, "iter_start": 1})
    sought = {"lmbda": SearchSpace((1e-6, 1e-2), is_range=True, log=True), "optimizer": SearchSpace(("sgd", "adam"))}
    assert {run.name: run.sought for run in runs} == {"a/target_sparsity_50/width_1e0": sought, "fixed": {}}
    assert (runs[1].config.target_sparsity, runs[1].config.iter_start) == (50, 1)


@pytest.mark.parametrize("flag", ["epochs 5", "image_size 32", "lmbda auto", "ticket t", "warmup_length 10"])
def test_flags_of_a_sweep_are_completed_and_checked_with_the_options_of_each_run(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(2)}, "t", {"about": '{"options": {"dataset": "CIFAR10"}}'})
    assert parse_args(["--sweep", "s.yml", *f"--{flag}".split()]).model_fields_set == {"sweep", flag.split()[0]}


def test_a_flag_that_a_run_cannot_use_is_refused_for_this_run(sweep, refusal, tmp_path):
    words = sweep(runs={"a": None, "b": {"epochs": 4, "iter_period": 1}})
    assert f"epochs ({words[1]}, b): warmup_length 4 has to be below epochs, 4" in refusal(*words, "--warmup_length", 4)
    (tmp_path / "config.yml").write_text("name: a")
    assert "the same command goes on with a sweep" in refusal(*words, "--resume", tmp_path)
    assert "--list, --report: each of these says what to do" in refusal(*words, "--list", "models", "--report", "x")


# ---- who takes which run -------------------------------------------------------------------------------------------


def test_a_claim_is_held_until_the_child_that_was_given_it_is_gone(tmp_path):
    lock = tmp_path / "claims" / "one.lock"
    claim = Claim.of(lock)
    assert Claim.of(lock) is None
    with subprocess.Popen(["sleep", "60"], pass_fds=claim.handles) as child:
        claim.release()  # as if the worker had died
        assert Claim.of(lock) is None
        child.kill()
    Claim.of(lock).release()


@pytest.mark.parametrize("name", ["ab, " * 100, "é", "模" * 99])
def test_names_that_begin_alike_have_files_of_their_own_however_long(name, tmp_path):
    claims, config = Claims(tmp_path), config_of(TINY, "test")
    one, other = (Unit.of(name + end, config) for end in " _")
    assert claims.claim(one) and claims.claim(one) is None and claims.claim(other)
    assert claims.options_file(one) != claims.options_file(other)


def test_a_worker_that_restarts_under_its_old_name_gives_up_what_failed_again(tmp_path):
    unit = Unit.of("a, trial 1", config_of(TINY, "test"))
    Claims(tmp_path).failed(unit, 2)
    (record,) = tmp_path.glob(".sweep/failed/*")
    os.utime(record, (1, 1))
    claims = Claims(tmp_path)
    claim = claims.claim(unit)
    claims.failed(unit, 2)
    claim.release()
    assert claims.claim(unit) is None
    told = yaml.safe_load(claims.options_file(unit).read_text())  # also what a resumed run would take from its folder
    assert told == {**told, "save_model": False, "with_dense": False, "checkpoint_every": "1"}


def _trials(tmp_path, count, **changed):
    """The view of one worker."""
    options = {**TINY, "name": "a", "num_trial": count, "results_dir": str(tmp_path), **changed}
    return Trials("a", config_of(options, "test"), Claims(tmp_path / "s"))


def _finish(task, ended_early=False, **summary):
    """What a run that ends well leaves, as far as sweeps look at it."""
    task.unit.folder.mkdir(parents=True, exist_ok=True)
    (task.unit.folder / "config.yml").write_text(task.unit.asked.to_yaml())
    write_json(task.unit.folder / "summary.json", summary)
    task.done(ended_early)
    task.claim.release()


def test_every_trial_is_taken_by_one_worker_and_that_of_a_dead_one_by_one_other(tmp_path):
    one, other, third = (_trials(tmp_path, 3) for _ in range(3))
    first, second, last = one.take(), other.take(), third.take()
    assert [task.unit.asked.trial_num for task in (first, second, last)] == [1, 2, 3]
    assert one.take() is None and not one.over
    _finish(first)
    second.claim.release()  # its worker died
    assert one.take().unit.asked.trial_num == 2
    assert third.take() is None
    _finish(last)
    assert third.take() is None and not third.over  # trial 2 is in work by the first


def test_a_run_that_was_changed_in_the_file_is_not_advised_to_take_a_flag_that_sweeps_refuse(tmp_path):
    _finish(_trials(tmp_path, 1).take())
    changed = _trials(tmp_path, 1, lr=0.2)
    assert changed.take() is None
    said = changed._claims.problems["a, trial 1"]
    assert said.endswith("lr 0.1 → 0.2; move it away, or give the run another name in the file")


def test_workers_that_race_finish_every_trial_once(tmp_path):
    def work(_):
        trials = _trials(tmp_path, 12)
        while not trials.over:
            if (task := trials.take()) is not None:
                yield task.unit.asked.trial_num
                _finish(task)

    with ThreadPoolExecutor(4) as pool:
        taken = pool.map(lambda number: list(work(number)), range(4))
    assert sorted(chain(*taken)) == list(range(1, 13))


def _ending(monkeypatch, codes):
    """Let the runs end with these codes, well unless stated; returns what was run, and with which options."""
    ran = {}

    def run(task, options, _asked):
        name = task.unit.name.partition(",")[0]
        ran[name] = yaml.safe_load(options.read_text())
        return codes.get(name, 0), False

    monkeypatch.setattr(worker, "run_process", run)
    return ran


def test_a_sweep_goes_on_after_runs_that_fail_and_names_them_in_the_end(sweep, done, refusal, monkeypatch, tmp_path):
    words = sweep(options=TINY, runs=dict.fromkeys("abcd"))
    codes = {"a": 2, "b": 3, "c": -signal.SIGKILL}
    ran = _ending(monkeypatch, codes)
    said = refusal(*words)
    assert list(ran) == ["a", "b", "c", "d"]
    assert "a, trial 1 ended with exit code 2" in said and "c, trial 1 was killed by SIGKILL" in said
    assert "b, trial 1 diverged" in said and "d," not in said
    codes.clear()  # mended; what diverges does so every time
    ran.clear()
    refusal(*words)
    assert list(ran) == ["a", "c", "d"]  # d left no summary here
    (tmp_path / "results" / "s" / ".sweep" / "failed" / "b,+trial+1.json").unlink()
    done(*words)


@pytest.mark.parametrize(("code", "own"), [(143, 143), (75, 75), (-signal.SIGTERM, 143)])
def test_a_run_that_was_asked_to_stop_stops_its_worker(code, own, sweep, call, monkeypatch):
    ran = _ending(monkeypatch, {"a": code})
    outcome = call(*sweep(options=TINY, runs=dict.fromkeys("ab")))
    assert (outcome.code, list(ran)) == (own, ["a"])
    assert "the same command goes on" in outcome.err


def test_a_run_that_another_machine_began_goes_on_with_the_device_of_this_one(tmp_path):
    unit = _trials(tmp_path, 1).take().unit
    unit.folder.mkdir(parents=True)
    (unit.folder / "config.yml").write_text(unit.config.model_copy(update={"device": "cuda", "gpu": 3}).to_yaml())
    words = ["--config", str(Claims(tmp_path / "s").options_file(unit)), "--resume", str(unit.folder)]
    assert (parse_args(words).device, parse_args(words).gpu) == ("cpu", 0)


def test_runs_share_the_time_that_their_worker_has(sweep, call, monkeypatch):
    ran = _ending(monkeypatch, {})
    monkeypatch.setattr(worker.time, "monotonic", lambda: 3600 * len(ran))  # every run takes an hour
    monkeypatch.setattr(worker, "STARTED", 0)
    assert call(*sweep(options=TINY, runs=dict.fromkeys("abc")), "--max_time", "2h").code == 75
    assert {name: options["max_time"] for name, options in ran.items()} == {"a": "7200s", "b": "3600s"}


CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)
"""


def test_a_worker_passes_on_what_it_is_sent_and_ends_with_the_code_of_its_run(tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(worker, "MAIN", tmp_path / "child.py")
    before, trials = signal.getsignal(signal.SIGUSR1), _trials(tmp_path, 2)
    with pytest.raises(Stopped) as stopped:
        worker.work([trials], Claims(tmp_path / "s"))
    assert stopped.value.exit_code == 138
    assert signal.getsignal(signal.SIGUSR1) == before
    assert trials.take().unit.asked.trial_num == 1  # free again


# ---- what a search finds -------------------------------------------------------------------------------------------


def _searches(words, workers=1):
    """The views that so many workers have of the only run of a sweep."""
    pytest.importorskip("optuna")
    from trainers.sweeping.search import Search

    results = words[words.index("--results_dir") + 1]
    (planned,), settings = plan(Path(words[1]), {"results_dir": results})
    return [Search(planned, settings, Claims(Path(results) / "s")) for _ in range(workers)]


def _play(search, runs=100):
    """Run the search, or so many runs of it, on a made-up accuracy that is best at λ = 1e-4; returns the λs."""
    drawn = []
    while len(drawn) < runs and (task := search.take()) is not None:
        if "search_" not in task.unit.name:
            task.claim.release()
            break
        drawn.append(task.unit.asked.lmbda)
        _finish(task, val_acc_before_finetune=90 - 10 * abs(log10(drawn[-1]) + 4), weights_remaining_percent=20)
    return drawn


def test_a_search_finds_the_best_and_writes_it_down_ready_to_use(sweep, tmp_path):
    (search,) = _searches(sweep(options=TINY, search=LAMBDA, study={"trials": 16}))
    drawn, place = _play(search), tmp_path / "results" / "s"
    best = min(drawn, key=lambda value: abs(log10(value) + 4))
    assert len(set(drawn)) == len(drawn) <= 16 and 3e-5 < best < 3e-4  # what was run is not run again
    found = parse_args(["--config", str(place / "best_a.yml")])
    confirmed, config = search.found.experiment
    assert (found.lmbda, found.seed, found.skip_fine_tune) == (best, 42, False)
    assert found.config_hash == config.config_hash
    assert confirmed == place / "a" / f"lmbda_{best}" / "trial_1"
    assert "val_acc_before_finetune" in (place / "best_a.yml").read_text()
    assert f"the best of {len(drawn)} runs (0 ended early) with seed 7" in search.outcome


def test_a_search_whose_runs_are_all_refused_says_why(sweep):
    pairs = {"warmup_length": [5, 6], "epochs": [4, 5]}
    options = {name: value for name, value in TINY.items() if name != "epochs"}
    (search,) = _searches(sweep(options=options, search=pairs, study={"pruner": "none"}))
    assert search.take() is None
    (problem,) = search._claims.problems.values()
    assert "warmup_length" in problem


@pytest.mark.parametrize("trials", [4, 6])
def test_listed_values_are_each_run_once_though_a_worker_dies_with_the_one_it_has_chosen(trials, sweep, monkeypatch):
    values = [1e-5, 3e-5, 2e-4, 1e-3]
    died, other = _searches(sweep(options=TINY, search={"lmbda": values}, study={"trials": trials}), workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(died._study, "ask", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            died.take()
    assert _play(other) == values
    assert "lmbda 0.0002" in other.outcome and "the best of 4 runs" in other.outcome


@pytest.mark.parametrize("numbers", [(1, 4), (3, 12)])
def test_listed_values_are_each_run_once_though_fewer_trials_were_asked_for_at_first(numbers, sweep):
    values = [1e-5, 3e-5, 2e-4, 1e-3]
    words = (sweep(options=TINY, search={"lmbda": values}, study={"trials": trials}) for trials in numbers)
    assert sorted(value for each in words for value in _play(*_searches(each))) == values


def test_a_run_that_failed_is_not_among_those_of_which_one_is_the_best(sweep):
    (search,) = _searches(sweep(options=TINY, search={"lmbda": [1e-5, 3e-5, 2e-4]}, study={"trials": 3}))
    failed = search.take()
    search._claims.failed(failed.unit, 2)
    failed.claim.release()
    assert len(_play(search)) == 2 and "the best of 2 runs (0 ended early)" in search.outcome


def test_a_listed_value_that_one_worker_runs_is_not_drawn_by_another(sweep):
    values = [1e-5, 3e-5, 2e-4]
    one, other = _searches(sweep(options=TINY, search={"lmbda": values}, study={"trials": 12}), workers=2)
    assert [task.unit.asked.lmbda for task in (one.take(), other.take(), one.take())] == values
    assert one.take() is None


def test_more_combinations_than_can_be_listed_are_drawn(sweep):
    many = {name: list(range(2, 62)) for name in ("hidden_size", "batch_size", "lmbda", "lr")}
    others = {name: value for name, value in TINY.items() if name not in many}
    (search,) = _searches(sweep(options=others, search=many, study={"trials": 2}))
    assert len(_play(search)) == 2  # of thirteen million


def test_a_search_that_is_interrupted_draws_what_it_would_have_drawn(sweep, tmp_path):
    words = sweep(options=TINY, search=LAMBDA, study={"trials": 8})
    drawn = _play(*_searches([*words[:2], "--results_dir", str(tmp_path / "whole")]))
    one, other, third = _searches(words, workers=3)
    assert _play(one, 3) == drawn[:3]
    left = one.take()
    left.claim.release()  # its worker died
    again = other.take()
    assert again.unit == left.unit and again.unit.asked.lmbda == drawn[3]
    assert third.take().unit.asked.lmbda != drawn[3]  # a new one: the fourth is the second worker's now
    again.claim.release()
    assert _play(*_searches(words), 1) == [drawn[3]]


def test_a_damaged_journal_is_named(sweep, tmp_path):
    words = sweep(options=TINY, search=LAMBDA)
    _play(*_searches(words), 1)
    journal = tmp_path / "results" / "s" / "journal.log"
    journal.write_text(journal.read_text().replace("}", "", 1))
    with pytest.raises(UserError, match=r"cannot read .*journal\.log"):
        _searches(words)


@pytest.mark.parametrize(("tolerance", "best"), [(0.05, 1e-4), (0.1, 1e-5), (None, 1e-5), (0.04, None)])
def test_a_ticket_may_have_more_weights_than_asked_for_by_the_tolerance(tolerance, best, sweep):
    study = {"trials": 6, "seed": 3, "tolerance": tolerance}
    (search,) = _searches(sweep(options=TINY, search={"lmbda": [1e-5, 1e-4]}, study=study))
    while (task := search.take()) is not None and "search_" in task.unit.name:
        dense = task.unit.asked.lmbda < 5e-5
        _finish(task, val_acc_before_finetune=99 if dense else 50, weights_remaining_percent=21.1 if dense else 20.9)
    assert (search.found and search.found.experiment[1].lmbda) == best
    assert best or "% of the weights remain where 20% were asked for" in search._claims.problems["a"]


@pytest.mark.parametrize(
    ("given", "missed"),
    [({}, False), ({"target_sparsity": 5}, True), ({"target_sparsity": 5, "algo": "training"}, False)],
)
def test_a_search_of_an_algorithm_without_a_target_judges_densities_only_by_a_target_that_was_given(given, missed):
    config = config_of({"algo": "random_subnet", "prune_rate": 0.5, **given}, "a test")
    assert bool(misses_target({"weights_remaining_percent": 50.0}, config, 0.05)) is missed


def test_the_ladder_ends_at_the_best_configs():
    planned, _ = plan(PROJECT / "configs/sweeps/best_ladder.yml", {})
    best = (parse_args(["--config", str(path)]) for path in (PROJECT / "configs/best").glob("*.yml"))
    assert {one.config.config_hash for one in planned[-3:]} == {config.config_hash for config in best}


def test_a_run_poorer_than_those_that_meet_the_target_is_ended_early(sweep):
    (search,) = _searches(sweep(options=TINY, search=LAMBDA, study={"trials": 6, "startup": 2}))
    for accuracy, remaining, ended_early in (
        (95, 40, False), (90, 40, False), (60, 20, False), (80, 20, False), (50, 20, True), (50, 20, False)
    ):  # fmt: skip
        task = search.take()
        rows = [epoch_row(epoch, accuracy) for epoch in range(10)]
        task.unit.folder.mkdir(parents=True)
        for epochs in (7, 10):  # half of the epochs and two more, and all
            write_csv(task.unit.folder / task.unit.asked.results_filename, rows[:epochs])
            assert task.should_stop_early() == ((accuracy, epochs) == (50, 10))
        assert not task.should_stop_early()  # each epoch is judged once, by the runs that are finished by then
        _finish(task, ended_early, val_acc_before_finetune=accuracy, weights_remaining_percent=remaining)
    states = [(trial.state.name, trial.value) for trial in search._study.trials]
    missed = ("COMPLETE", 0)
    # The last had finished before it could be stopped.
    assert states == [missed, missed, ("COMPLETE", 60), ("COMPLETE", 80), ("PRUNED", 50), ("COMPLETE", 50)]


def test_a_run_is_poor_below_the_median_in_three_epochs_in_a_row():
    others = [{1: 50, 2: 60, 3: 70}, {1: 40, 2: 80, 3: 90}, {1: 30, 2: 70}]
    assert is_below_median({1: 39, 2: 69, 3: 79}, others, enough=2)
    assert not is_below_median({1: 40, 2: 69, 3: 79}, others, enough=2)
    assert not is_below_median({1: 39, 2: 69, 3: 79}, others, enough=3)  # two at epoch 3
    assert not is_below_median({2: 0, 3: 0}, others, enough=1)


def test_a_search_without_optuna_says_what_to_install_and_a_grid_does_without(sweep, done, refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "trainers.sweeping.search", raising=False)
    _ending(monkeypatch, {})
    assert "pip install optuna" in refusal(*sweep(options=TINY, search=LAMBDA))
    done(*sweep(options=TINY))


def test_what_a_search_found_keeps_no_time_limit(tmp_path):
    config = config_of({**TINY, "lmbda": 1e-3, "max_time": "2h"}, "test")
    found = yaml.safe_load(write_found(tmp_path, "a", config, "so").read_text())
    assert found["lmbda"] == 1e-3 and "max_time" not in found


# ---- whole sweeps --------------------------------------------------------------------------------------------------


def test_a_sweep_runs_everything_once_and_compares(sweep, call, done, in_process, tmp_path):
    words = sweep(
        options={"algo": "random", "arch": "resnet20", "width": 0.25, "threads": 1, "batch_size": 256, "epochs": 1},
        vary={"target_sparsity": [20, 5]},
        runs={"random": None, "dense": {"algo": "training", "target_sparsity": 100}, "snip": {"algo": "snip"}},
    )
    planned = call(*words, "--dry_run")
    assert planned.out.count("| 1 | 0 |") == 5 and not (tmp_path / "results").exists()
    assert "| dense | training | – | 1 | 0 |" in planned.out and "| snip | 20 | 1 | 0 |" in planned.out
    outcome = done(*words)
    place = tmp_path / "results" / "s"
    rows = {row["run"]: row for row in read_rows(place / "comparison.csv")}
    varied = [f"{run}/target_sparsity_{target}" for run in ("random", "snip") for target in (20, 5)]
    assert list(rows) == [*varied[:2], "dense", *varied[2:]]
    for name in varied:  # those of random were finished before the dense network was
        one = summary_of(place / name / "trial_1")
        assert float(rows[name]["test_acc_after_finetune_mean"]) == one["test_acc_after_finetune"]
        assert float(rows[name]["gap_to_dense_mean"]) == one["dense"]["gap"]
    assert (place / "comparison.md").read_text() in outcome.out
    assert call(*words).out.count("is finished: nothing to do") == 5
    assert call(*words, "--num_trial", 3, "--dry_run").out.count("| 3 | 1 |") == 5
    assert call(*words, "--trial_num", 2, "--dry_run").out.count("| 1 | 0 |") == 5
    assert done(*words, "--with_dense").out.count("is finished: nothing to do") == 5  # the dense network is there
    more = done(*words, "--num_trial", 3).out
    assert "± " in more and (", passes" in more or ", fails" in more)


@pytest.mark.parametrize(("values", "runs"), [([1e-5, 3e-5, 2e-4], 3), ([1e-5, 3e-5, 2e-4, 1e-3, 1e-2], 4)])
def test_the_plan_counts_the_runs_of_a_search_among_listed_values(values, runs, sweep, done):
    words = sweep(options=TINY, search={"lmbda": values}, study={"trials": 4})
    assert f"| {runs} to find lmbda, then 1 |" in done(*words, "--dry_run").out


def test_the_dense_network_of_a_finished_ticket_is_made_up_for(sweep, done, in_process, tmp_path):
    words = sweep(options=TINY | {"algo": "random"})
    done(*words)
    done(*words, "--with_dense")
    place = tmp_path / "results" / "s"
    assert summary_of(place / "a" / "trial_1")["dense"]["run"] == str(place / "a_dense" / "trial_1")
    assert done(*words, "--with_dense").out.count("is finished: nothing to do") == 1


def test_lambda_is_searched_and_what_was_found_run_with_other_seeds(sweep, done, in_process, tmp_path):
    pytest.importorskip("optuna")
    words = sweep(options={**TINY, "num_trial": 2}, search=LAMBDA, study={"trials": 3, "startup": 2})
    assert "| a | hc_iter | 20 | 3 to find lmbda, then 2 | – |" in done(*words, "--dry_run").out
    out = done(*words).out
    place = tmp_path / "results" / "s"
    searched, found = (
        [summary_of(folder) for folder in sorted(place.glob(f"a/{kind}/trial_*"))] for kind in ("search_*/*", "lmbda_*")
    )
    assert [(one["seed"], one["test_acc_after_finetune"]) for one in searched] == [(7, None)] * 3
    assert f"val_acc_before_finetune {max(one['val_acc_before_finetune'] for one in searched):.2f}%" in out
    assert [one["seed"] for one in found] == [42, 84]
    (row,) = read_rows(place / "comparison.csv")
    assert row["run"].startswith("a/lmbda_") and row["trials"] == "2"


@pytest.mark.slow
def test_another_worker_goes_on_where_one_was_killed(sweep, call, in_process, tmp_path):
    words = sweep(options={**TINY, "epochs": 60, "num_trial": 2}, vary={"lmbda": [1e-4, 1e-3]})
    workers, place = [start(*words) for _ in range(2)], tmp_path / "results" / "s"
    while not any(len(read_rows(path)) > 3 for path in place.rglob("acc_and_sparsity.csv")):
        assert all(one.poll() is None for one in workers)
        time.sleep(0.05)
    victims = subprocess.run(["pgrep", "-P", str(workers[0].pid)], capture_output=True, text=True).stdout.split()
    workers[0].kill()
    subprocess.run(["kill", "-9", *victims], check=False)
    (_, err), _ = (one.communicate(timeout=300) for one in reversed(workers))
    assert workers[1].returncode == 0, err
    # By itself, one after another, in another place: the same to the bit.
    assert call(*words, "--results_dir", tmp_path / "alone").code == 0
    finished, alone = (
        {path.parent.relative_to(top): timeless(path.parent) for path in sorted(top.rglob("summary.json"))}
        for top in (place, tmp_path / "alone" / "s")
    )
    assert len(finished) == 4 and same_bits(finished, alone)
