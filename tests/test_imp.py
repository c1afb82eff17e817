"""Iterative magnitude pruning: what a round prunes, what it is rewound to, and that a killed run goes on in it."""

import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import SMALL, alone, interrupted, read_rows, same_bits, script, summary_of, timeless
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
from utils.masks import all_kept, remaining, total
from utils.run.run import Run

IMP = [*SMALL, "--algo", "imp", "--iter_period", "1", "--device", "cpu", "--target_sparsity", "50"]


def _searched(folder: Path, *words: str) -> tuple[Ticket, Run, Config]:
    """The ticket of two rounds."""
    config = parse_args([*IMP, "--imp_rounds", "2", *words])
    run = Run(folder / "run", folder / "logs", config.effective_seed)
    return find_ticket(build_model(config), load_data(config), config, run), run, config


@pytest.mark.parametrize(("words", "number", "kept"), [
    ("--imp_rounds 3 --prune_rate 0.3", 1, [False, True, True, False, True, True, False]),  # ⌈0.3·7⌉ = 3 go
    ("--target_sparsity 50", 3, [False, True, True, True, True, True, False]),  # ⌈0.2·7⌉ = 2 go
    ("--target_sparsity 50", 4, [False, True, True, False, True, True, False]),  # the last: ⌊0.5·8⌋ = 4 are left
])  # fmt: skip
def test_a_pruning_takes_the_smallest_survivors_of_the_whole_network(words, number, kept, tmp_path):
    config = parse_args(["--algo", "imp", *words.split()])
    weights = {"a.weight": torch.tensor([[0.1, -0.5, 0.9]]), "b.weight": torch.tensor([[-0.3, 0.8], [0.7, -0.2]])}
    masks = {**all_kept(weights), "c.weight": torch.tensor([[False]])}
    ticket = Ticket({**weights, "c.weight": torch.zeros(1, 1)}, masks)
    found = smallest_pruned(ticket, number, config, Run(tmp_path / "r", tmp_path / "l", 1))
    assert torch.cat([mask.flatten() for mask in found.values()]).tolist() == [*kept, False]


# ---- rewinding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["as drawn", "of a file", "as trained"])
def test_a_ticket_has_the_weights_that_are_asked_for_and_the_batch_norm_as_trained(weights, tmp_path):
    other, path = build_model(parse_args([*IMP, "--seed", "9"])).state_dict(), tmp_path / "other.pt"
    torch.save(other, path)
    words = {
        "as drawn": ["--imp_rewind_iter", "0"], "of a file": ["--imp_rewind_model", str(path)],
        "as trained": ["--imp_no_rewind"],
    }  # fmt: skip
    ticket, run, config = _searched(tmp_path, *words[weights])
    trained = read_ticket(run.folder / "rounds" / "round_000.safetensors")[0].state
    wanted = {"as drawn": build_model(config).state_dict(), "of a file": other, "as trained": trained}[weights]
    assert same_bits(ticket.state, {**trained, **{name: wanted[name] for name in ticket.masks}})
    assert trained["bn1.running_mean"].ne(0).any()


def test_a_warm_ticket_has_the_weights_of_that_step_of_round_0(tmp_path):
    ticket, run, config = _searched(tmp_path, "--imp_rewind_iter", "2")
    net, data = build_model(config), load_data(config)
    dense = Ticket(plain_state(net), all_kept(prunable_parameters(net)), recipe=Recipe.of_search(config, epochs=1))
    training = Round(net, dense, None)
    net.train()
    batches = data.train.epoch(run.rng("search/round_0", "batches"))
    for step in range(2):
        train_step(training, step, *next(batches))
    assert all(torch.equal(ticket.state[name], weight) for name, weight in prunable_parameters(net).items())


@pytest.mark.parametrize(
    ("words", "steps", "step"),
    [("", 5000, 1000), ("", 200, 10), ("--imp_rewind_iter 7", 200, 7), ("--imp_rewind_iter 200", 200, 200)],
)
def test_the_rewind_step_is_the_one_asked_for_or_5_percent_of_a_short_round(words, steps, step):
    assert rewind_step(parse_args(["--algo", "imp", *words.split()]), steps) == step


# ---- whole runs ----------------------------------------------------------------------------------------------------

THREE = [*IMP, "--imp_rounds", "3", "--iter_period", "2", "--skip_sanity_checks", "--save_every", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imp")
    alone(*THREE, "--results_dir", root / "results", "--log_dir", root / "runs")
    return root / "results" / "trial_1"


def test_the_last_round_is_the_trained_ticket(finished):
    summary, rows = summary_of(finished), read_rows(finished / "acc_and_sparsity.csv")
    assert [row["phase"] for row in rows] == [f"search/round_{number}" for number in (0, 0, 1, 1, 2, 2)]
    assert summary["test_acc_after_finetune"] == float(rows[-1]["test_acc"])
    assert summary["density_reason"] == "3 rounds of prune_rate 0.2 were asked for, whatever the target"
    assert (summary["cost"]["search"]["epochs"], summary["cost"]["finetune"]["epochs"]) == (6, 0)


def test_a_round_leaves_its_network_its_masks_which_only_shrink_and_its_line(finished):
    lines, rows = (read_rows(finished / name) for name in ("rounds/rounds.csv", "acc_and_sparsity.csv"))
    rounds = [read_ticket(path) for path in sorted((finished / "rounds").glob("round_*.safetensors"))]
    assert [line["round"] for line in lines] == ["0", "1", "2"]
    for (kept, about), line, row in zip(rounds, lines, rows[1::2], strict=True):
        assert about["test_acc"] == float(line["test_acc"]) == float(row["test_acc"])
        percent = 100 * remaining(kept.masks) / total(kept.masks)
        assert float(line["weights_remaining_percent"]) == pytest.approx(percent)
        assert all(torch.equal(kept.state[name] != 0, mask) for name, mask in kept.masks.items())
    for (before, _), (after, _) in pairwise(rounds):
        assert all((after.masks[name] <= mask).all() for name, mask in before.masks.items())


@pytest.mark.parametrize(
    ("line", "signum"), [("search/round_1 1/2", signal.SIGTERM), ("search/round_2 1/2", signal.SIGKILL)]
)
def test_a_stopped_run_goes_on_within_its_round(line, signum, finished, done, places, trial):
    interrupted(line, *THREE, *places, signum=signum)
    folder = trial()
    assert not (folder / "summary.json").exists()
    done("--resume", folder)
    assert same_bits(timeless(folder), timeless(finished))
    assert (folder / "rounds" / "rounds.csv").read_text() == (finished / "rounds" / "rounds.csv").read_text()


@pytest.mark.parametrize(("number", "place"), [("1", []), ("1", ["--imp_resume_epoch", "1"]), ("2", [])])
def test_another_run_goes_on_from_a_round(number, place, finished, ran):
    folder = ran(*THREE, "--imp_resume_folder", finished, "--imp_resume_round", number, *place)
    theirs, ours = (load_file(folder / "ticket.safetensors") for folder in (finished, folder))
    assert same_bits(theirs, ours)


def test_a_ticket_that_is_not_rewound_has_the_weights_that_were_pruned_for_its_control_networks(ran):
    words = [*THREE, "--imp_no_rewind"]
    whole = ran(*words, name="whole")
    state = read_ticket(whole / "ticket.safetensors")[0].state
    assert all(state[name].ne(0).all() for name in prunable_parameters(build_model(parse_args(words))))
    again = ran(*words, "--imp_resume_folder", whole, "--imp_resume_round", "2", name="again")
    assert same_bits(*(load_file(folder / "ticket.safetensors") for folder in (whole, again)))


def test_a_first_round_of_another_run_that_is_the_last_one_began_with_the_weights_as_drawn(finished, ran):
    words = [*THREE, "--imp_rounds", "1"]
    whole = ran(*words, name="whole")
    taken = ran(*words, "--imp_resume_folder", finished, "--imp_resume_round", "0", name="taken")
    assert same_bits(*(load_file(folder / "ticket.safetensors") for folder in (whole, taken)))


def test_the_rounds_decay_by_their_own_factor(ran):
    words = [*THREE, "--lr_policy", "multistep_lr", "--milestones", "1", "--lr_gamma", "0.5", "--warmup_length", "0"]
    rates = [float(row["lr"]) for row in read_rows(ran(*words) / "acc_and_sparsity.csv")]
    assert rates[1::2] == [rate / 2 for rate in rates[::2]]


def test_a_run_from_another_ones_round_goes_on_when_that_is_gone(finished, done, places, trial, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    words = [*THREE, "--imp_resume_folder", other, "--imp_resume_round", "1", *places]
    interrupted("search/round_2 1/2", *words)
    shutil.rmtree(other)
    done("--resume", trial())
    assert same_bits(*(load_file(folder / "ticket.safetensors") for folder in (finished, trial())))


def test_a_run_from_within_a_first_round_rewinds_to_its_own_weights(ran, call, done, places, trial, monkeypatch):
    theirs = ran(*THREE, name="other") / "rounds" / "rewind.safetensors"
    later = theirs.rename(theirs.with_suffix(".later"))
    words = [*THREE, "--imp_resume_folder", trial("other"), "--imp_resume_round", "0", "--imp_resume_epoch", "1"]
    whole = ran(*words, "--imp_rewind_iter", "8", name="whole")
    with monkeypatch.context() as stopping:
        stopping.setattr("utils.run.stopping.Stopping.asked", property(lambda _: 143))
        assert call(*words, "--imp_rewind_iter", "8", *places, "--name", "stopped").code == 143
    later.rename(theirs)  # the other run has ended its round meanwhile
    done("--resume", trial("stopped"))
    assert same_bits(timeless(trial("stopped")), timeless(whole))


def test_a_round_without_the_weights_to_rewind_to_is_refused_and_another_rewind_step_is_not_used(
    finished, done, refusal, places, tmp_path
):
    copy = shutil.copytree(finished, tmp_path / "copy")
    words = [*THREE, "--imp_resume_folder", copy, "--imp_resume_round", "1"]
    used = done(*words, "--imp_rewind_iter", "2", *places).err
    assert f"imp_rewind_iter is not used: later rounds rewind to the weights in {copy}" in used
    first = [*THREE, "--imp_resume_folder", copy, "--imp_resume_round", "0", "--name", "first", *places]
    assert f"rewind to the weights in {copy}" in done(*first, "--imp_rewind_iter", "4").err
    (copy / "rounds" / "rewind.safetensors").unlink()
    words += ["--name", "again", *places]
    assert "rewind.safetensors to rewind to after round 1" in refusal(*words)
    done(*THREE, *places, "--imp_rewind_iter", "9", "--name", "late")  # after the epoch that the next run goes on from
    late = copy.with_name("results") / "late" / "trial_1"
    (late / "rounds" / "rewind.safetensors").unlink()
    early = ["--imp_resume_folder", late, "--imp_resume_round", "0"]
    early += ["--imp_resume_epoch", "1", "--imp_rewind_iter", "3", "--name", "early"]
    assert "rewind.safetensors to rewind to after round 0" in refusal(*THREE, *places, *early)
    done(*words, "--imp_no_rewind")


@pytest.mark.parametrize(("words", "said"), [
    ("--imp_resume_round 2 --imp_resume_epoch 7", "at epoch 7 step 0; of that round it has epoch 2 step 0"),
    ("--imp_resume_round 1 --imp_resume_folder none", "none has no checkpoint of round 1 at its end"),
    ("--imp_rewind_iter 13", "imp_rewind_iter 13 lies beyond round 0, which has 12 steps"),
])  # fmt: skip
def test_a_round_or_step_that_is_not_there_leaves_nothing(words, said, finished, refusal, places, tmp_path):
    folder = ["--imp_resume_folder", finished] if "resume" in words else []
    assert said in refusal(*THREE, *folder, *words.split(), *places)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_imp_exec_runs_cold_and_warm_long_and_short(places, tmp_path):
    short = ["--epochs", "2", "--iter_period", "2", "--target_sparsity", "60"]
    done = script("imp_exec.sh", tmp_path, *SMALL, *short, "--skip_sanity_checks", *places)
    assert done.returncode == 0, done.stderr
    assert [summary_of(path.parent)["algo"] for path in tmp_path.rglob("summary.json")] == ["imp"] * 4
