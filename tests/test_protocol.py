"""One protocol for all: the dense reference, checks of finished runs and claimed tickets, a user's own algorithm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL, Outcome, read_rows, same_bits

from args_helper import parse_args
from models.build import build_model
from trainers import missing_checks, pipeline
from trainers.checks.controls import CHECKS
from trainers.results.references import dense_config
from trainers.tickets.file import read_ticket
from utils.errors import Diverged, Stopped
from utils.files import write_csv
from utils.run.stopping import Stopping

GUIDE = (PROJECT / "trainers" / "algorithms" / "README.md").read_text(encoding="utf-8")
Call = Callable[..., Outcome]
RANDOM = [*SMALL, "--algo", "random", "--fine_tune_epochs", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """The folder of the first trial of a run by its name."""
    return lambda name: tmp_path / "results" / name / "trial_1"


def _summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# ---- the dense network ---------------------------------------------------------------------------------------------


def test_the_dense_network_is_trained_on_request_and_stands_beside_the_ticket(call, places, folder):
    options = [*RANDOM, "--skip_sanity_checks", *places]
    outcome = call(*options, "--name", "ticket", "--with_dense")
    assert outcome.code == 0, outcome.err
    assert "dense network" in outcome.out
    ticket, dense = (_summary(folder(name)) for name in ("ticket", "ticket_dense"))
    assert dense["weights_remaining"] == dense["weights_total"] and dense["checks"] == {} and dense["dense"] is None
    gap = dense["test_acc_after_finetune"] - ticket["test_acc_after_finetune"]
    assert (ticket["dense"]["gap"], ticket["dense"]["run"]) == (pytest.approx(gap), str(folder("ticket_dense")))
    # Another ticket of the same network finds it; one of another network does not.
    assert call(*options, "--name", "other", "--algo", "magnitude", "--with_dense").code == 0
    assert not folder("other_dense").exists()
    assert _summary(folder("other"))["dense"]["run"] == ticket["dense"]["run"]
    assert call(*options, "--name", "wide", "--width", "0.3").code == 0
    assert _summary(folder("wide"))["dense"] is None


def test_a_run_that_is_stopped_in_its_dense_run_goes_on_with_all_that_is_left(call, places, folder, monkeypatch):
    def stopping(config, place):
        if config.algorithm.is_dense:
            raise Stopped("asked to stop", 143, place)
        run_trial(config, place)

    run_trial = pipeline._run_trial
    monkeypatch.setattr(pipeline, "_run_trial", stopping)
    outcome = call(*RANDOM, "--skip_sanity_checks", *places, "--with_dense", "--num_trial", 2)
    assert outcome.code == 143 and f"--resume {folder('')}\n" in outcome.err
    monkeypatch.undo()
    assert call("--resume", folder("")).code == 0
    assert all(_summary(folder("").with_name(f"trial_{number}"))["dense"] for number in (1, 2))


def test_the_dense_run_is_trained_as_the_ticket_is():
    dense = dense_config(parse_args("--algo hc_iter --lr 3 --fine_tune_lr 0.2 --epochs 9 --fine_tune_epochs 7".split()))
    assert (dense.algo, dense.lr, dense.epochs, dense.lmbda) == ("training", 0.2, 7, 1e-3)
    words = "--algo imp --lr 0.3 --iter_period 4 --lr_gamma 0.5 --wd 0.01 --init signed_constant"
    dense = dense_config(parse_args(words.split()))
    assert (dense.lr, dense.epochs, dense.gamma, dense.wd, dense.init) == (0.3, 4, 0.5, 0.01, "signed_constant")


# ---- checks --------------------------------------------------------------------------------------------------------


def test_missing_checks_of_finished_runs_are_made_up_for(call, places, folder, tmp_path):
    whole, later = folder("whole"), folder("later")
    assert call(*RANDOM, *places, "--name", "whole").code == 0
    assert call(*RANDOM, *places, "--name", "later", "--skip_sanity_checks").code == 0
    shutil.rmtree(later / "checkpoints")  # the ticket is enough
    before, options = (later / "acc_and_sparsity.csv").read_text(), (later / "config.yml").read_text()
    outcome = call("--only-sanity", "--sanity_folder", tmp_path / "results")
    assert outcome.code == 0, outcome.err
    assert f"{whole}: no check is missing" in outcome.out
    assert _summary(later)["checks"] == _summary(whole)["checks"]
    trained = [read_rows(path) for path in later.glob("acc_and_sparsity*.csv")]
    seconds = sum(float(row["seconds"]) for rows in trained for row in rows)
    assert _summary(later)["seconds"] == pytest.approx(seconds + _summary(later)["search_seconds"])
    assert (later / "acc_and_sparsity.csv").read_text() == before
    assert parse_args(["--resume", str(later)]).subfolder is None
    asked = options.replace("skip_sanity_checks: true", "skip_sanity_checks: false")
    assert (later / "config.yml").read_text() == asked
    assert (tmp_path / "runs" / "later" / "trial_1" / "check").is_dir()
    assert "warning" not in outcome.err
    assert len(read_rows(later / "acc_and_sparsity_mask_shuffle.csv")) == 1
    assert json.loads((later.parent / "trials.json").read_text())["checks"]["mask_shuffle"]["trials"] == 1


def test_checks_are_made_where_the_command_says_and_a_damaged_run_does_not_stop_the_others(
    call, places, folder, tmp_path
):
    for name in ("damaged", "whole"):
        assert call(*RANDOM, *places, "--name", name, "--skip_sanity_checks").code == 0
    (folder("damaged") / "summary.json").write_text("{}")
    logs = tmp_path / "elsewhere"
    outcome = call("--only_sanity", "--sanity_folder", tmp_path / "results", "--log_dir", logs, "--no_cuda")
    assert outcome.code == 2 and "not all runs could be checked; all others are:" in outcome.err
    assert str(folder("damaged")) in outcome.err and str(folder("whole")) not in outcome.err
    assert set(_summary(folder("whole"))["checks"]) == set(CHECKS)
    assert (logs / "whole" / "trial_1" / "check").is_dir()


def test_checks_that_diverge_do_not_stop_those_of_other_runs(call, places, folder, tmp_path, monkeypatch):
    for name in ("ill", "whole"):
        assert call(*RANDOM, *places, "--name", name, "--skip_sanity_checks").code == 0
    make = missing_checks.train_controls

    def checks(run, *rest):
        if run.folder == folder("ill").resolve():
            raise Diverged("check/mask_shuffle diverged")
        return make(run, *rest)

    monkeypatch.setattr(missing_checks, "train_controls", checks)
    outcome = call("--only_sanity", "--sanity_folder", tmp_path / "results")
    assert outcome.code == 2 and f"{folder('ill')}: check/mask_shuffle diverged" in outcome.err
    assert set(_summary(folder("whole"))["checks"]) == set(CHECKS)


def test_checks_that_were_stopped_are_gone_on_with_by_the_same_command(call, places, folder, tmp_path, monkeypatch):
    assert call(*RANDOM, *places, "--skip_sanity_checks").code == 0
    words = ("--only_sanity", "--sanity_folder", tmp_path / "results")
    with monkeypatch.context() as stopped:
        stopped.setattr(Stopping, "asked", property(lambda _: 143))
        outcome = call(*words)
    assert outcome.code == 143 and outcome.err.splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
    assert call(*words).code == 0
    assert set(_summary(folder(""))["checks"]) == set(CHECKS)


def test_a_summary_that_lacks_what_is_printed_is_named_before_anything_is_trained(call, places, folder, tmp_path):
    assert call(*RANDOM, *places, "--skip_sanity_checks").code == 0
    path = folder("") / "summary.json"
    path.write_text(
        json.dumps({name: value for name, value in _summary(folder("")).items() if name != "search_seconds"})
    )
    outcome = call("--only_sanity", "--sanity_folder", tmp_path / "results")
    assert outcome.code == 2 and "search_seconds: Field required" in outcome.err
    assert not (folder("") / "acc_and_sparsity_mask_shuffle.csv").exists()


def test_a_folder_without_finished_runs_says_so(call, tmp_path):
    outcome = call("--only-sanity", "--sanity_folder", tmp_path)
    assert outcome.code == 2 and "there is no finished run" in outcome.err


def test_a_claimed_ticket_is_trained_and_checked(call, places, folder, tmp_path):
    ours, theirs = (build_model(parse_args([*SMALL, "--seed", seed])) for seed in ("42", "7"))
    masks = {}
    for name, weight in theirs.named_parameters():
        masks[name] = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
        weight.data *= masks[name]
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    torch.save(ours.state_dict(), tmp_path / "dense.pth")
    options = [*SMALL, "--fine_tune_epochs", 1, *places]
    outcome = call(*options, "--only-sanity", "--ticket", tmp_path / "weights.pth")
    assert outcome.code == 0, outcome.err
    summary = _summary(folder(""))
    assert (summary["algo"], set(summary["checks"])) == ("given", set(CHECKS))
    ticket, _ = read_ticket(folder("") / "ticket.safetensors")
    assert same_bits(ticket.masks, masks)
    for name, mask in masks.items():
        assert torch.equal(ticket.state[name], torch.where(mask, theirs.get_parameter(name), ours.get_parameter(name)))
    for file, said in (("nowhere.pth", "nowhere.pth (ticket)"), ("dense.pth", "without a zero")):
        outcome = call(*options, "--name", "other", "--ticket", tmp_path / file)
        assert outcome.code == 2 and said in outcome.err


def test_a_ticket_of_a_run_is_taken_up_with_its_gem(call, places, folder):
    options = [*SMALL, "--unflag_before_finetune", "--lmbda", "5e-3", "--skip_sanity_checks", *places]
    assert call(*options, "--name", "first").code == 0
    given = [*options, "--ticket", folder("first") / "ticket.safetensors"]
    assert call(*given, "--name", "again").code == 0
    same = ("weights_remaining", "gem_weights_remaining", "test_acc_before_finetune", "layers")
    before, after = ([_summary(folder(name))[figure] for figure in same] for name in ("first", "again"))
    assert before == after
    outcome = call(*given, "--name", "wide", "--width", "0.5")
    assert outcome.code == 2 and "does not fit the network" in outcome.err


def test_a_run_does_not_go_on_with_another_ticket_under_the_same_path(call, places, folder, tmp_path):
    path = tmp_path / "ticket.safetensors"
    for density in ("30", "10"):
        words = ("--skip_sanity_checks", "--name", density, "--target_sparsity", density)
        assert call(*RANDOM, *places, *words).code == 0
    given = [*SMALL, "--fine_tune_epochs", 1, *places, "--ticket", path, "--name", "given"]
    shutil.copy(folder("30") / "ticket.safetensors", path)
    assert call(*given, "--skip_sanity_checks").code == 0
    (folder("given") / "summary.json").unlink()
    shutil.copy(folder("10") / "ticket.safetensors", path)
    for words in (given, ["--resume", folder("given")]):
        outcome = call(*words)
        assert outcome.code == 2 and f"begun with another file {path} (ticket) than is there now" in outcome.err
    shutil.copy(folder("30") / "ticket.safetensors", path)
    assert call("--resume", folder("given"), "--skip_sanity_checks").code == 0


def test_an_inverted_run_is_set_beside_the_run_it_inverts(call, places, folder):
    options = [*SMALL, "--epochs", 2, "--fine_tune_epochs", 1, "--skip_sanity_checks", *places]
    assert call(*options, "--name", "upright").code == 0
    assert call(*options, "--name", "inverted", "--invert_sanity_check").code == 0
    upright, inverted = (_summary(folder(name)) for name in ("upright", "inverted"))
    assert "inverts" not in upright
    margin = pytest.approx(upright["test_acc_after_finetune"] - inverted["test_acc_after_finetune"])
    trials = json.loads((folder("inverted").parent / "trials.json").read_text())
    assert inverted["inverts"]["margin"] == trials["checks"]["score_inversion"]["margin"] == margin


def test_a_random_ticket_never_passes_against_its_own_shuffle(call, places, tmp_path):
    assert call(*SMALL, "--algo", "random", "--fine_tune_epochs", 3, "--num_trial", 3, *places).code == 0
    verdict = json.loads((tmp_path / "results" / "trials.json").read_text())["checks"]["mask_shuffle"]
    assert (verdict["trials"], verdict["passes"]) == (3, False)


@pytest.mark.parametrize(
    ("words", "applied"),
    [
        ("", []),
        ("--shuffle", ["mask_shuffle"]),
        ("--shuffle --chg_weight", ["weight_shuffle"]),
        ("--reinit", ["weight_reinit"]),
        ("--reinit --chg_mask", ["mask_shuffle"]),
        ("--shuffle --chg_mask --chg_weight", ["mask_shuffle", "weight_shuffle"]),
    ],
)
def test_a_random_subnet_has_the_check_applied_that_is_asked_for(words, applied, call, places, folder):
    for name, more in (("plain", []), ("changed", words.split())):
        options = ["--random_subnet", "--prune_rate", 0.3, "--skip_fine_tune", "--name", name]
        assert call(*SMALL, *options, *more, *places).code == 0
    summary = _summary(folder("changed"))
    assert summary["checks_applied"] == applied
    assert summary["weights_remaining_percent"] == pytest.approx(30, abs=1.5)
    before, after = (read_ticket(folder(name) / "ticket.safetensors")[0] for name in ("plain", "changed"))
    assert torch.equal(before.masks["fc.weight"], after.masks["fc.weight"]) is ("mask_shuffle" not in applied)
    weights_stay = not {"weight_shuffle", "weight_reinit"} & set(applied)
    assert torch.equal(before.state["fc.weight"], after.state["fc.weight"]) is weights_stay


# ---- a user's own --------------------------------------------------------------------------------------------------

OWN = """
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket

def broken(net, data, config, run):
    return 1 / 0

def strange(net, data, config, run):
    return {"fc.weight": 1}

def misshapen(net, data, config, run):
    return Ticket(plain_state(net), {"fc.weight": prunable_parameters(net)["fc.weight"][:1] > 0})

def all_of(net, **more):
    masks = {name: weight > 0 for name, weight in prunable_parameters(net).items()}
    return Ticket(**{"state": plain_state(net), "masks": masks, **more})

def cut(net, data, config, run):
    return all_of(net, state={name: value[None] for name, value in plain_state(net).items()})

def told(net, data, config, run):
    return all_of(net, facts={"score": net.fc.weight})

def hiding(net, data, config, run):
    return all_of(net, facts={"seconds": "long"})
"""


def test_the_guides_algorithm_of_ones_own_runs_under_the_same_protocol(call, places, folder, tmp_path):
    [example] = [part for part in GUIDE.split("```") if part.startswith("python\n# mine.py")]
    assert len(example.splitlines()) <= 17
    (tmp_path / "mine.py").write_text(example.removeprefix("python\n"))
    own = f"{tmp_path}/mine.py:find_ticket"
    outcome = call(*RANDOM, "--algo", own, *places)
    assert outcome.code == 0, outcome.err
    summary = _summary(folder(""))
    assert (summary["algo"], set(summary["checks"])) == (own, set(CHECKS))
    assert summary["weights_remaining"] == int(0.2 * summary["weights_total"])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("find_tickets", "there is no function find_tickets in"),
        ("broken", "ZeroDivisionError: division by zero (line 6)"),
        ("strange", "returned dict, not a Ticket"),
        ("misshapen", "masks['fc.weight'] is not a boolean tensor of the shape"),
        ("cut", "its state is not the plain network's whole state_dict"),
        ("told", "its facts are not values of JSON"),
        ("hiding", "the summary has a field of its own for seconds"),
    ],
)
def test_what_is_wrong_with_ones_own_algorithm_is_said(function, said, call, places, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    outcome = call(*RANDOM, "--algo", f"{tmp_path}/mine.py:{function}", *places)
    assert outcome.code == 2 and said in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_table_without_rows_is_no_file(tmp_path):
    write_csv(tmp_path / "none.csv", [])
    assert list(tmp_path.iterdir()) == []
