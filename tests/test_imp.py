"""Iterative magnitude pruning: what a round prunes, what it is rewound to, and that a killed run goes on in it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL, Outcome, same_bits, start, timeless
from safetensors.torch import load_file

from args_helper import Config, parse_args
from data.load import load_data
from models.build import build_model
from models.masking import plain_state, prunable_parameters
from trainers.algorithms.imp import Round, find_ticket, smallest_pruned
from trainers.algorithms.imp_rounds import rewind_step
from trainers.tickets.file import read_ticket
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train_step
from utils.errors import UserError
from utils.masks import all_kept, remaining, total
from utils.run.run import Run

IMP = [*SMALL, "--algo", "imp", "--iter_period", "1", "--device", "cpu", "--target_sparsity", "50"]


def _searched(folder: Path, *words: str) -> tuple[Ticket, Run, Config]:
    config = parse_args([*IMP, *words])
    run = Run(folder / "run", folder / "logs", config.effective_seed)
    return find_ticket(build_model(config), load_data(config), config, run), run, config


def _drawn(config: Config) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in prunable_parameters(build_model(config)).items()}


# ---- pruning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "number", "kept"),
    [
        ("--imp_rounds 3 --prune_rate 0.3", 1, [False, True, True, False, True, True, False]),  # ⌈0.3·7⌉ = 3 go
        ("--target_sparsity 50", 1, [False, True, True, True, True, True, False]),  # ⌈0.2·7⌉ = 2 go
        ("--target_sparsity 50", 4, [False, True, True, False, True, True, False]),  # the last: ⌊0.5·8⌋ = 4 are left
    ],
)  # fmt: skip
def test_a_pruning_takes_the_smallest_survivors_of_the_whole_network(
    words: str, number: int, kept: list[bool], tmp_path: Path
) -> None:
    config = parse_args(["--algo", "imp", *words.split()])
    weights = {"a.weight": torch.tensor([[0.1, -0.5, 0.9]]), "b.weight": torch.tensor([[-0.3, 0.8], [0.7, -0.2]])}
    pruned = torch.tensor([[0.0]])
    state = {**weights, "c.weight": pruned}
    masks = {**all_kept(weights), "c.weight": torch.tensor([[False]])}
    found = smallest_pruned(Ticket(state, masks), number, config, Run(tmp_path / "r", tmp_path / "l", 1))
    assert torch.cat([found[name].flatten() for name in weights]).tolist() == kept
    assert not found["c.weight"].any()


def test_masks_only_shrink_and_end_exactly_at_the_target(tmp_path: Path) -> None:
    ticket, run, config = _searched(tmp_path)
    assert config.imp_prunings == 4
    rounds = [read_ticket(run.folder / "rounds" / f"round_{number:03d}.safetensors")[0].masks for number in range(5)]
    counts = [remaining(masks) for masks in rounds]
    assert counts[0] == total(ticket.masks)
    assert counts[4] == remaining(ticket.masks) == int(0.5 * total(ticket.masks))
    for before, after in pairwise(rounds):
        assert all((after[name] <= before[name]).all() for name in after)
        assert remaining(after) >= int(0.8 * remaining(before)) - 1 or after is rounds[-1]


def test_a_round_leaves_its_network_its_masks_and_its_line(tmp_path: Path) -> None:
    _, run, _ = _searched(tmp_path, "--imp_rounds", "2", "--prune_rate", "0.4")
    with (run.folder / "rounds" / "rounds.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["round"] for line in lines] == ["0", "1"]
    for line in lines:
        kept, about = read_ticket(run.folder / "rounds" / f"round_{int(line['round']):03d}.safetensors")
        assert about["test_acc"] == float(line["test_acc"]) == run.rows(f"search/round_{line['round']}")[-1]["test_acc"]
        assert float(line["weights_remaining_percent"]) == pytest.approx(
            100 * remaining(kept.masks) / total(kept.masks)
        )
        for name, mask in kept.masks.items():
            assert kept.state[name][~mask].eq(0).all() and kept.state[name][mask].ne(0).all()


# ---- rewinding -----------------------------------------------------------------------------------------------------


def test_a_cold_ticket_has_the_weights_as_drawn_and_the_batch_norm_as_trained(tmp_path: Path) -> None:
    ticket, run, config = _searched(tmp_path, "--imp_rewind_iter", "0", "--imp_rounds", "2")
    for name, weight in _drawn(config).items():
        assert torch.equal(ticket.state[name], weight)
    trained = read_ticket(run.folder / "rounds" / "round_000.safetensors")[0].state
    assert torch.equal(ticket.state["bn1.running_mean"], trained["bn1.running_mean"])
    assert trained["bn1.running_mean"].ne(0).any()


def test_a_warm_ticket_has_the_weights_of_that_step_of_round_0(tmp_path: Path) -> None:
    ticket, run, config = _searched(tmp_path, "--imp_rewind_iter", "2", "--imp_rounds", "2")
    net, data = build_model(config), load_data(config)
    dense = Ticket(plain_state(net), all_kept(prunable_parameters(net)), recipe=Recipe.of_search(config, epochs=1))
    training = Round(net, dense, None)
    net.train()
    batches = data.train.epoch(run.rng("search/round_0", "batches"))
    for step in range(2):
        train_step(training, step, *next(batches))
    for name, weight in prunable_parameters(net).items():
        assert torch.equal(ticket.state[name], weight)


def test_without_rewinding_a_round_goes_on_from_the_last_ones_weights(tmp_path: Path) -> None:
    ticket, run, _ = _searched(tmp_path, "--imp_no_rewind", "--imp_rounds", "2")
    trained = read_ticket(run.folder / "rounds" / "round_000.safetensors")[0].state
    assert all(torch.equal(ticket.state[name], trained[name]) for name in trained)


def test_weights_are_rewound_to_those_of_a_file_where_one_is_given(tmp_path: Path) -> None:
    other = build_model(parse_args([*IMP, "--seed", "9"]))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    ticket, _, _ = _searched(tmp_path, "--imp_rewind_model", str(tmp_path / "other.pt"), "--imp_rounds", "2")
    assert all(torch.equal(ticket.state[name], weight) for name, weight in prunable_parameters(other).items())


@pytest.mark.parametrize(
    ("asked", "steps", "step"), [(None, 5000, 1000), (None, 200, 10), (7, 200, 7), (200, 200, 200)]
)
def test_the_rewind_step_is_the_one_asked_for_or_a_twentieth_of_a_short_round(
    asked: int | None, steps: int, step: int
) -> None:
    words = [] if asked is None else ["--imp_rewind_iter", str(asked)]
    assert rewind_step(parse_args(["--algo", "imp", *words]), steps) == step


def test_a_rewind_step_beyond_round_0_is_refused_and_leaves_nothing(
    call: Callable[..., Outcome], places: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="imp_rewind_iter 201 lies beyond round 0, which has 200 steps"):
        rewind_step(parse_args("--algo imp --imp_rewind_iter 201".split()), 200)
    outcome = call(*IMP, "--imp_rewind_iter", 9999, *places)
    assert outcome.code == 2 and "lies beyond round 0" in outcome.err
    assert list(tmp_path.iterdir()) == []


# ---- whole runs ----------------------------------------------------------------------------------------------------

THREE = [*IMP, "--imp_rounds", "3", "--iter_period", "2", "--skip_sanity_checks"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imp")
    process = start(*THREE, "--results_dir", root / "results", "--log_dir", root / "runs", "--save_every", 1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return root / "results" / "trial_1"


def test_the_last_round_is_the_trained_ticket(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    with (finished / "acc_and_sparsity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == [f"search/round_{number}" for number in (0, 0, 1, 1, 2, 2)]
    assert summary["test_acc_after_finetune"] == float(rows[-1]["test_acc"])
    assert summary["cost"]["search"]["epochs"] == 6
    assert summary["density_reason"] == "3 rounds of prune_rate 0.2 were asked for, whatever the target"
    assert summary["cost"]["finetune"]["epochs"] == 0


@pytest.mark.parametrize(
    ("line", "signum"), [("search/round_1 1/2", signal.SIGTERM), ("search/round_2 1/2", signal.SIGKILL)]
)
def test_a_stopped_run_goes_on_within_its_round(
    line: str, signum: int, finished: Path, call: Callable[..., Outcome], places: list[str], tmp_path: Path
) -> None:
    process = start(*THREE, *places, "--save_every", 1)
    for said in process.stdout:
        if said.startswith(line):
            process.send_signal(signum)
            break
    process.communicate(timeout=120)
    folder = tmp_path / "results" / "trial_1"
    assert not (folder / "summary.json").exists()
    assert call("--resume", folder).code == 0
    assert same_bits(timeless(folder), timeless(finished))
    assert (folder / "rounds" / "rounds.csv").read_text() == (finished / "rounds" / "rounds.csv").read_text()


@pytest.mark.parametrize("place", [[], ["--imp_resume_epoch", "1"]], ids=["its end", "an epoch"])
def test_another_run_goes_on_from_a_round(
    place: list[str], finished: Path, call: Callable[..., Outcome], places: list[str], tmp_path: Path
) -> None:
    source = ["--imp_resume_folder", finished, "--imp_resume_round", "1", *place]
    outcome = call(*THREE, *source, *places)
    assert outcome.code == 0, outcome.err
    theirs, ours = (load_file(folder / "ticket.safetensors") for folder in (finished, tmp_path / "results" / "trial_1"))
    assert same_bits(theirs, ours)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--imp_resume_round", "2", "--imp_resume_epoch", "7"],
            "at epoch 7 step 0; of that round it has epoch 2 step 0",
        ),
        (["--imp_resume_round", "1", "--imp_resume_folder", "none"], "none has no checkpoint of round 1 at its end"),
    ],
)
def test_a_round_that_is_not_there_is_refused(
    words: list[str], said: str, finished: Path, call: Callable[..., Outcome], places: list[str], tmp_path: Path
) -> None:
    outcome = call(*THREE, "--imp_resume_folder", finished, *words, *places)
    assert outcome.code == 2
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_imp_exec_runs_cold_and_warm_long_and_short(places: list[str], tmp_path: Path) -> None:
    short = ["--epochs", "2", "--iter_period", "2", "--target_sparsity", "60"]
    options = [*SMALL, *short, "--skip_sanity_checks", *places]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "TRIALS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", PROJECT / "imp_exec.sh", *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert len(summaries) == 4
    assert {one["algo"] for one in summaries} == {"imp"}
