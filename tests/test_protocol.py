"""One protocol for all: the dense reference, checks of finished runs and claimed tickets, a user's own algorithm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL, Outcome, read_rows

from args_helper import parse_args
from models.build import build_model
from trainers.checks.controls import CHECKS
from trainers.results.references import dense_config
from trainers.tickets.file import read_ticket
from utils.files import write_csv

GUIDE = (PROJECT / "trainers" / "algorithms" / "README.md").read_text(encoding="utf-8")
Call = Callable[..., Outcome]
RANDOM = [*SMALL, "--algo", "random", "--fine_tune_epochs", "1"]


def _summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# ---- the dense network ---------------------------------------------------------------------------------------------


def test_the_dense_network_is_trained_on_request_and_stands_beside_the_ticket(
    call: Call, places: list[str], tmp_path: Path
) -> None:
    options = [*RANDOM, "--skip_sanity_checks", *places]
    outcome = call(*options, "--name", "ticket", "--with_dense")
    assert outcome.code == 0, outcome.err
    ticket, dense = (_summary(tmp_path / "results" / name / "trial_1") for name in ("ticket", "ticket_dense"))
    assert dense["weights_remaining"] == dense["weights_total"] and dense["checks"] == {} and dense["dense"] is None
    gap = dense["test_acc_after_finetune"] - ticket["test_acc_after_finetune"]
    assert ticket["dense"]["gap"] == pytest.approx(gap)
    assert ticket["dense"]["run"] == str(tmp_path / "results" / "ticket_dense" / "trial_1")
    assert "dense network" in outcome.out or f"points {'below' if gap >= 0 else 'above'} it" in outcome.out
    # Another ticket of the same network finds it; one of another network does not.
    assert call(*options, "--name", "other", "--algo", "magnitude").code == 0
    assert _summary(tmp_path / "results" / "other" / "trial_1")["dense"]["run"] == ticket["dense"]["run"]
    assert call(*options, "--name", "wide", "--width", "0.3").code == 0
    assert _summary(tmp_path / "results" / "wide" / "trial_1")["dense"] is None
    assert call(*options, "--name", "third", "--algo", "snip", "--with_dense").code == 0
    assert not (tmp_path / "results" / "third_dense").exists()


def test_the_dense_run_is_trained_as_the_ticket_is() -> None:
    dense = dense_config(parse_args("--algo hc_iter --lr 3 --fine_tune_lr 0.2 --epochs 9 --fine_tune_epochs 7".split()))
    assert (dense.algo, dense.lr, dense.epochs, dense.lmbda) == ("training", 0.2, 7, 1e-3)
    words = "--algo imp --lr 0.3 --iter_period 4 --lr_gamma 0.5 --wd 0.01 --init signed_constant"
    dense = dense_config(parse_args(words.split()))
    assert (dense.lr, dense.epochs, dense.gamma, dense.wd) == (0.3, 4, 0.5, 0.01)
    assert dense.init == "signed_constant"


# ---- checks --------------------------------------------------------------------------------------------------------


def test_missing_checks_of_finished_runs_are_made_up_for(call: Call, places: list[str], tmp_path: Path) -> None:
    whole, later = tmp_path / "results" / "whole" / "trial_1", tmp_path / "results" / "later" / "trial_1"
    assert call(*RANDOM, *places, "--name", "whole").code == 0
    assert call(*RANDOM, *places, "--name", "later", "--skip_sanity_checks").code == 0
    shutil.rmtree(later / "checkpoints")  # the ticket is enough
    before, options = (later / "acc_and_sparsity.csv").read_text(), (later / "config.yml").read_text()
    outcome = call("--only-sanity", "--sanity_folder", tmp_path / "results")
    assert outcome.code == 0, outcome.err
    assert f"{whole}: no check is missing" in outcome.out
    assert _summary(later)["checks"] == _summary(whole)["checks"]
    assert (later / "acc_and_sparsity.csv").read_text() == before
    assert parse_args(["--resume", str(later)]).subfolder is None
    assert (later / "config.yml").read_text() == options.replace(
        "skip_sanity_checks: true", "skip_sanity_checks: false"
    )
    assert (tmp_path / "runs" / "later" / "trial_1" / "check").is_dir()
    assert "warning" not in outcome.err
    assert len(read_rows(later / "acc_and_sparsity_mask_shuffle.csv")) == 1
    assert json.loads((later.parent / "trials.json").read_text())["checks"]["mask_shuffle"]["trials"] == 1
    assert f"{later}: no check is missing" in call("--only-sanity", "--sanity_folder", later).out


def test_a_folder_without_finished_runs_says_so(call: Call, tmp_path: Path) -> None:
    outcome = call("--only-sanity", "--sanity_folder", tmp_path)
    assert outcome.code == 2
    assert "there is no finished run" in outcome.err


def test_a_claimed_ticket_is_trained_and_checked(call: Call, places: list[str], tmp_path: Path) -> None:
    theirs = build_model(parse_args([*SMALL, "--seed", "7"]))
    masks = {}
    for name, weight in theirs.named_parameters():
        masks[name] = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
        weight.data *= masks[name]
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    options = [*SMALL, "--fine_tune_epochs", 1, *places]
    outcome = call(*options, "--only-sanity", "--ticket", tmp_path / "weights.pth")
    assert outcome.code == 0, outcome.err
    summary = _summary(tmp_path / "results" / "trial_1")
    assert summary["algo"] == "given"
    assert set(summary["checks"]) == set(CHECKS)
    ticket, _ = read_ticket(tmp_path / "results" / "trial_1" / "ticket.safetensors")
    ours = build_model(parse_args(SMALL))
    for name, mask in masks.items():
        assert torch.equal(ticket.masks[name], mask)
        assert torch.equal(ticket.state[name], torch.where(mask, theirs.get_parameter(name), ours.get_parameter(name)))
    assert "there is no file nowhere.pth (ticket)" in call(*options, "--name", "none", "--ticket", "nowhere.pth").err
    dense = tmp_path / "dense.pth"
    torch.save(ours.state_dict(), dense)
    outcome = call(*options, "--name", "dense", "--ticket", dense)
    assert outcome.code == 2
    assert "without a zero" in outcome.err


def test_a_ticket_of_a_run_is_taken_up_with_its_gem(call: Call, places: list[str], tmp_path: Path) -> None:
    options = [*SMALL, "--unflag_before_finetune", "--lmbda", "5e-3", "--skip_sanity_checks", *places]
    assert call(*options, "--name", "first").code == 0
    first = tmp_path / "results" / "first" / "trial_1"
    assert call(*options, "--name", "again", "--ticket", first / "ticket.safetensors").code == 0
    before, after = (_summary(folder) for folder in (first, tmp_path / "results" / "again" / "trial_1"))
    same = ("weights_remaining", "gem_weights_remaining", "test_acc_before_finetune", "layers")
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    outcome = call(*options, "--name", "wide", "--width", "0.5", "--ticket", first / "ticket.safetensors")
    assert outcome.code == 2 and "does not fit the network" in outcome.err


def test_an_inverted_run_is_set_beside_the_run_it_inverts(call: Call, places: list[str], tmp_path: Path) -> None:
    options = [*SMALL, "--epochs", 2, "--fine_tune_epochs", 1, "--skip_sanity_checks", *places]
    assert call(*options, "--name", "upright").code == 0
    assert call(*options, "--name", "inverted", "--invert_sanity_check").code == 0
    upright, inverted = (_summary(tmp_path / "results" / name / "trial_1") for name in ("upright", "inverted"))
    assert "inverts" not in upright
    margin = upright["test_acc_after_finetune"] - inverted["test_acc_after_finetune"]
    assert inverted["inverts"]["margin"] == pytest.approx(margin)
    trials = json.loads((tmp_path / "results" / "inverted" / "trials.json").read_text())
    assert trials["checks"]["score_inversion"]["margin"] == pytest.approx(margin)


def test_a_random_ticket_never_passes_against_its_own_shuffle(call: Call, places: list[str], tmp_path: Path) -> None:
    options = ["--algo", "random", "--fine_tune_epochs", 3, "--num_trial", 3]
    assert call(*SMALL, *options, *places).code == 0
    verdict = json.loads((tmp_path / "results" / "trials.json").read_text())["checks"]["mask_shuffle"]
    assert verdict["trials"] == 3
    assert verdict["passes"] is False


@pytest.mark.parametrize(
    ("words", "applied"),
    [
        ([], []),
        (["--shuffle"], ["mask_shuffle"]),
        (["--shuffle", "--chg_weight"], ["weight_shuffle"]),
        (["--reinit"], ["weight_reinit"]),
        (["--reinit", "--chg_mask"], ["mask_shuffle"]),
        (["--shuffle", "--chg_mask", "--chg_weight"], ["mask_shuffle", "weight_shuffle"]),
    ],
)
def test_a_random_subnet_has_the_check_applied_that_is_asked_for(
    words: list[str], applied: list[str], call: Call, places: list[str], tmp_path: Path
) -> None:
    options = ["--random_subnet", "--prune_rate", 0.3, "--skip_fine_tune", "--name"]
    assert call(*SMALL, *options, "plain", *places).code == 0
    assert call(*SMALL, *options, "changed", *words, *places).code == 0
    plain, changed = (tmp_path / "results" / name / "trial_1" for name in ("plain", "changed"))
    assert _summary(changed)["checks_applied"] == applied
    assert _summary(changed)["weights_remaining_percent"] == pytest.approx(30, abs=1.5)
    before, after = (read_ticket(folder / "ticket.safetensors")[0] for folder in (plain, changed))
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
"""


def test_the_guides_algorithm_of_ones_own_runs_under_the_same_protocol(
    call: Call, places: list[str], tmp_path: Path
) -> None:
    [example] = [part for part in GUIDE.split("```") if part.startswith("python\n# mine.py")]
    assert len(example.splitlines()) <= 17
    (tmp_path / "mine.py").write_text(example.removeprefix("python\n"))
    own = f"{tmp_path}/mine.py:find_ticket"
    outcome = call(*RANDOM, "--algo", own, *places)
    assert outcome.code == 0, outcome.err
    summary = _summary(tmp_path / "results" / "trial_1")
    assert summary["algo"] == own
    assert set(summary["checks"]) == set(CHECKS)
    assert summary["weights_remaining"] == int(0.2 * summary["weights_total"])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("find_tickets", "there is no function find_tickets in"),
        ("broken", "ZeroDivisionError: division by zero (line 6)"),
        ("strange", "returned dict, not a Ticket"),
        ("misshapen", "masks['fc.weight'] is not a boolean tensor of the shape"),
    ],
)
def test_what_is_wrong_with_ones_own_algorithm_is_said(
    function: str, said: str, call: Call, places: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    outcome = call(*RANDOM, "--algo", f"{tmp_path}/mine.py:{function}", *places)
    assert outcome.code == 2
    assert said in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_table_without_rows_is_no_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "none.csv", [])
    assert list(tmp_path.iterdir()) == []
