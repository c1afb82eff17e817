"""Runs from a notebook: the example's cells, and what a wrong option is told."""

import runpy
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT, read_rows
from trainers import mine
from utils.errors import UserError


def test_the_example_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(PROJECT / "tests" / "example_notebook.py"))
    run = found["run"]
    assert run.folder == found["again"].folder == Path("results/quickstart/trial_1")
    assert [row["phase"] for row in run.metrics].count("search") == 6
    searched = [row for row in run.metrics if row["phase"] == "search"]
    table = [row for row in read_rows(run.folder / "acc_and_sparsity.csv") if row["phase"] == "search"]
    assert [row["test_acc"] for row in searched] == [float(row["test_acc"]) for row in table]
    assert run.summary["weights_remaining"] == sum(int(mask.sum()) for mask in run.ticket.masks.values())
    for name, weight in run.model.named_parameters():
        if name in found["masks"]:
            assert not weight[~found["masks"][name]].any()
    assert len(found["figure"].axes) == 2


def test_the_model_of_a_run_has_the_accuracy_that_the_run_tells(finished: Path) -> None:
    from args_helper import parse_args
    from data.load import load_data
    from trainers.notebook import Mined
    from trainers.training.loop import evaluate

    run = Mined(finished, parse_args(["--resume", str(finished)]))
    data = load_data(run.config.model_copy(update={"device": "cpu"}))
    assert evaluate(run.model, data.test) == pytest.approx(run.summary["test_acc_after_finetune"])
    assert not torch.is_grad_enabled() or not any(one.requires_grad for one in run.model.parameters())


def test_a_wrong_option_is_answered_by_the_argument_that_was_meant() -> None:
    with pytest.raises(UserError, match=r"lrr=: no such option; did you mean lr=0\.1\?"):
        mine(lrr=0.1)
    with pytest.raises(UserError, match=r"arch=: 'resnet_20' is not one of .*; did you mean arch='resnet20'\?"):
        mine(PROJECT / "configs/quickstart.yml", arch="resnet_20")
