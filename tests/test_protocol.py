"""One protocol for all: the dense reference, checks of finished runs and claimed tickets, a user's own algorithm."""

import itertools
import json
import os
import shutil
import signal

import pytest
import torch
from conftest import PROJECT, SMALL, raising, read_rows, same_bits, summary_of, timeless

from args_helper import config_of, parse_args
from models.build import build_model
from trainers import missing_checks, pipeline
from trainers.checks.controls import CHECKS
from trainers.results.references import Found, dense_config, find_dense
from trainers.tickets.file import TICKET, read_ticket
from utils.errors import Diverged, Stopped, UserError
from utils.run.stopping import Stopping

GUIDE = (PROJECT / "trainers" / "algorithms" / "README.md").read_text(encoding="utf-8")
RANDOM = [*SMALL, "--algo", "random", "--fine_tune_epochs", "1"]


@pytest.fixture
def unchecked(ran):
    """Find a random ticket and train it, without checks; returns the folder."""
    return lambda *words, **name: ran(*RANDOM, "--skip_sanity_checks", *words, **name)


@pytest.fixture
def made_up(tmp_path):
    """The words that make up for the checks of all runs."""
    return ["--only_sanity", "--sanity_folder", tmp_path / "results"]


# ---- the dense network ---------------------------------------------------------------------------------------------


def test_the_dense_network_is_trained_on_request_and_stands_beside_the_ticket(done, unchecked, places, trial):
    words = [*RANDOM, "--skip_sanity_checks", *places, "--name", "ticket", "--with_dense"]
    assert "dense network" in done(*words).out
    ticket, dense = (summary_of(trial(name)) for name in ("ticket", "ticket_dense"))
    assert dense["weights_remaining"] == dense["weights_total"] and dense["checks"] == {} and dense["dense"] is None
    gap = dense["test_acc_after_finetune"] - ticket["test_acc_after_finetune"]
    assert (ticket["dense"]["gap"], ticket["dense"]["run"]) == (pytest.approx(gap), str(trial("ticket_dense")))
    # Another ticket of the same network finds it; one of another network does not.
    other = unchecked("--algo", "magnitude", "--with_dense", name="other")
    assert not trial("other_dense").exists()
    assert summary_of(other)["dense"]["run"] == ticket["dense"]["run"]
    assert summary_of(unchecked("--width", "0.3", name="wide"))["dense"] is None
    # It finds one that was given a target and a fine-tuning, which no dense network has.
    shutil.rmtree(trial("ticket_dense"))
    again = dense_config(parse_args([str(word) for word in words])).to_yaml()
    file = trial("dense").parent.with_suffix(".yml")
    given = again.replace("target_sparsity: 0.5", "target_sparsity: 100.0")
    file.write_text(given.replace("fine_tune_lr: 0.01", "fine_tune_lr: 1"))
    done("--config", file)
    found = summary_of(unchecked("--algo", "snip", "--with_dense", name="third"))["dense"]
    assert found["run"] == str(trial("dense/ticket_dense")) and found["trained_alike"]
    config, stored = parse_args([str(word) for word in words]), trial("dense/ticket_dense") / "config.yml"
    before = stored.read_text()
    stored.write_text(f"{before}resumed_with: lr 0.1 → 0.2\n")
    assert not find_dense(config).is_alike
    stored.write_text(before)
    assert find_dense(config).is_alike
    # One that is trained otherwise is compared with it, too, and gets a dense network of its own if that is asked for.
    longer = ["--fine_tune_epochs", 2]
    assert summary_of(unchecked(*longer, name="longer"))["dense"]["trained_alike"] is False
    assert summary_of(unchecked(*longer, "--with_dense", name="own"))["dense"]["run"] == str(trial("own_dense"))


def test_of_dense_runs_trained_alike_the_best_on_validation_is_the_reference(tmp_path):
    config = parse_args([])
    same = {"algo": "training", "task_hash": config.task_hash, "trial": config.trial_num}
    runs = [Found(tmp_path, {**same, "val_acc_after_finetune": val, "test_acc_after_finetune": test})
            for val, test in ((80.0, 95.0), (90.0, 85.0), (85.0, 75.0))]  # fmt: skip
    assert find_dense(config, runs).summary is runs[1].summary


def test_a_run_that_is_stopped_in_its_dense_run_goes_on_with_all_that_is_left(call, done, places, trial, monkeypatch):
    def stopping(config, place):
        if config.algorithm.is_dense:
            raise Stopped("asked to stop", 143, place)
        run_trial(config, place)

    run_trial = pipeline._run_trial
    monkeypatch.setattr(pipeline, "_run_trial", stopping)
    outcome = call(*RANDOM, "--skip_sanity_checks", *places, "--with_dense", "--num_trial", 2)
    assert outcome.code == 143 and f"--resume {trial()}\n" in outcome.err
    monkeypatch.undo()
    done("--resume", trial())
    assert all(summary_of(trial().with_name(f"trial_{number}"))["dense"] for number in (1, 2))


def test_the_dense_run_is_trained_as_the_ticket_is():
    dense = dense_config(parse_args("--algo hc_iter --lr 3 --fine_tune_lr 0.2 --epochs 9 --fine_tune_epochs 7".split()))
    assert (dense.algo, dense.lr, dense.epochs, dense.lmbda) == ("training", 0.2, 7, 1e-3)
    words = "--algo imp --lr 0.3 --iter_period 4 --lr_gamma 0.5 --wd 0.01 --init signed_constant"
    dense = dense_config(parse_args(words.split()))
    assert (dense.lr, dense.epochs, dense.gamma, dense.wd, dense.init) == (0.3, 4, 0.5, 0.01, "signed_constant")


def test_the_dense_run_is_of_the_same_weights_whatever_the_run_was_resumed_with():
    dense = dense_config(config_of({"scale_fan": True, "prune_rate": 0.3, "resumed_with": "lr 0.1 → 0.2"}))
    assert (dense.scale_fan, dense.prune_rate, dense.resumed_with) == (True, 0.3, None)


def test_a_taken_folder_of_the_dense_run_says_how_to_do_without_it(unchecked, refusal, places):
    unchecked("--lr", "0.3", name="one_dense")
    said = refusal(*RANDOM, "--skip_sanity_checks", *places, "--name", "one", "--with_dense")
    assert "leave the dense network out by --no-with_dense" in said


# ---- what is finished and what is not ------------------------------------------------------------------------------


def test_a_run_whose_config_is_gone_is_not_mixed_with_another(unchecked, refusal, places):
    (unchecked() / "config.yml").unlink()
    assert "holds a run whose config.yml is missing" in refusal(*RANDOM, *places, "--seed", 7)


@pytest.mark.parametrize(("words", "ends", "code"), [
    ("--num_trial 2", 1, 143),
    ("--num_trial 2 --with_dense", 2, 143),
    ("--with_dense", 1, 143),
    ("--with_dense", 2, 0),
])  # fmt: skip
def test_a_signal_after_the_last_step_of_a_trial_keeps_the_next_from_beginning(
    words, ends, code, call, places, trial, monkeypatch
):
    def screen(*_):
        ended.append(1)
        if len(ended) == ends:
            os.kill(os.getpid(), signal.SIGTERM)

    words, ended = [*RANDOM, *places, "--skip_sanity_checks", *words.split()], []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "last_screen", screen)
        outcome = call(*words)
        assert outcome.code == code and len(ended) == ends
        assert outcome.err.count("the same command goes on") == (code == 143)
    assert call(*words).code == 0
    assert (trial().parent / "trials.json").exists() and trial().with_name("trial_2").exists() == (
        "--num_trial" in words
    )


def test_the_line_that_resumes_the_first_trial_goes_on_with_the_next(call, done, places, trial, monkeypatch):
    second = trial().with_name("trial_2")
    with monkeypatch.context() as patch:
        patch.setattr("utils.run.stopping.Stopping.asked", property(lambda _: 143 * second.exists()))
        assert call(*RANDOM, *places, "--skip_sanity_checks", "--num_trial", 2).code == 143
    assert (trial() / "summary.json").exists() and not (second / "summary.json").exists()
    done("--resume", trial())
    assert (second / "summary.json").exists()


def test_a_run_is_finished_only_when_all_of_it_is_written(call, done, places, trial, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_png", raising(UserError("the disk is full")))
        assert call(*RANDOM, *places).code == 2
    done("--resume", trial())
    assert (trial() / "curves.png").exists()


def test_a_finished_stage_is_not_lengthened_without_a_word(unchecked, done):
    folder = unchecked()
    (folder / "summary.json").unlink()
    said = done("--resume", folder, "--fine_tune_epochs", 3, "--resume_anyway").err
    assert "finetune had ended after 1 epoch and stays so, not 3" in said


def test_a_shortened_stage_ends_with_an_epoch_that_was_measured(call, done, places, trial, monkeypatch):
    looks = itertools.count(1)
    with monkeypatch.context() as stopping:
        stopping.setattr(Stopping, "asked", property(lambda _: 143 * (next(looks) == 8)))  # within the second epoch
        assert call(*RANDOM, *places, "--fine_tune_epochs", 3, "--skip_sanity_checks").code == 143
    said = done("--resume", trial(), "--fine_tune_epochs", 1, "--resume_anyway").err
    assert "finetune had begun 2 epochs and ends with the last of them, not after 1" in said
    there = torch.load(trial() / "checkpoints" / "finetune.pt")
    assert (there["epoch"], there["step"], len(there["rows"])) == (2, 0, 2)


def test_events_of_another_run_in_the_same_place_are_told_of(unchecked, done, places):
    unchecked()
    said = done(*RANDOM, "--skip_sanity_checks", *places[2:], "--results_dir", f"{places[1]}_2").err
    assert "has events of another run, or of one that is gone" in said


# ---- checks --------------------------------------------------------------------------------------------------------


def test_missing_checks_of_finished_runs_are_made_up_for(done, ran, unchecked, made_up, tmp_path):
    whole, later = ran(*RANDOM, name="whole"), unchecked(name="later")
    shutil.rmtree(later / "checkpoints")  # the ticket is enough
    before, options = (later / "acc_and_sparsity.csv").read_text(), (later / "config.yml").read_text()
    outcome = done(*made_up)
    assert f"{whole}: no check is missing" in outcome.out
    assert summary_of(later)["checks"] == summary_of(whole)["checks"]
    trained = [read_rows(path) for path in later.glob("acc_and_sparsity*.csv")]
    seconds = sum(float(row["seconds"]) for rows in trained for row in rows)
    assert summary_of(later)["seconds"] == pytest.approx(seconds + summary_of(later)["search_seconds"])
    assert (later / "acc_and_sparsity.csv").read_text() == before
    assert parse_args(["--resume", str(later)]).subfolder is None
    asked = options.replace("skip_sanity_checks: true", "skip_sanity_checks: false")
    assert (later / "config.yml").read_text() == asked
    assert (tmp_path / "runs" / "later" / "trial_1" / "check").is_dir()
    assert "warning" not in outcome.err
    assert len(read_rows(later / "acc_and_sparsity_mask_shuffle.csv")) == 1
    assert json.loads((later.parent / "trials.json").read_text())["checks"]["mask_shuffle"]["trials"] == 1


def test_every_trial_has_the_verdict_over_all_of_them_when_checks_are_made_up_for(done, unchecked, made_up, trial):
    unchecked("--num_trial", 2)
    done(*made_up)
    checks = [summary_of(trial().with_name(f"trial_{number}"))["checks"] for number in (1, 2)]
    assert [check["trials"] for one in checks for check in one.values()] == [2] * 2 * len(CHECKS)


def test_checks_are_made_where_asked_and_a_damaged_run_does_not_stop_others(refusal, unchecked, made_up, tmp_path):
    damaged, whole = (unchecked(name=name) for name in ("damaged", "whole"))
    (damaged / "summary.json").write_text("{}")
    logs = tmp_path / "elsewhere"
    said = refusal(*made_up, "--log_dir", logs, "--no_cuda")
    assert "not all runs could be checked; all others are:" in said
    assert str(damaged) in said and str(whole) not in said
    assert set(summary_of(whole)["checks"]) == set(CHECKS)
    assert (logs / "whole" / "trial_1" / "check").is_dir()


def test_checks_that_diverge_do_not_stop_those_of_other_runs(refusal, unchecked, made_up, monkeypatch):
    ill, whole = (unchecked(name=name) for name in ("ill", "whole"))
    make = missing_checks.train_controls

    def checks(run, *rest):
        if run.folder == ill.resolve():
            raise Diverged("check/mask_shuffle diverged")
        return make(run, *rest)

    monkeypatch.setattr(missing_checks, "train_controls", checks)
    assert f"{ill}: check/mask_shuffle diverged" in refusal(*made_up)
    assert set(summary_of(whole)["checks"]) == set(CHECKS)


def test_checks_that_were_stopped_are_gone_on_with_by_the_same_command(call, done, unchecked, made_up, monkeypatch):
    folder = unchecked()
    with monkeypatch.context() as stopped:
        stopped.setattr(Stopping, "asked", property(lambda _: 143))
        outcome = call(*made_up)
    assert outcome.code == 143 and outcome.err.splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
    done(*made_up)
    assert set(summary_of(folder)["checks"]) == set(CHECKS)


def test_a_signal_after_the_last_check_of_a_run_keeps_those_of_the_next_from_beginning(
    call, unchecked, made_up, monkeypatch
):
    folders = [unchecked(name=name) for name in ("one", "two")]
    with monkeypatch.context() as patch:
        patch.setattr(missing_checks, "last_screen", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        outcome = call(*made_up)
    assert outcome.code == 143 and outcome.err.splitlines()[-1].endswith("the same command goes on")
    assert [len(summary_of(folder)["checks"]) for folder in folders] == [3, 0]


def test_a_summary_of_an_early_version_is_completed(done, unchecked, made_up):
    folder = unchecked()
    early = {name: value for name, value in summary_of(folder).items() if name not in ("seed", "dense", "precision")}
    (folder / "summary.json").write_text(json.dumps({**early, "dense": {"test_acc_after_finetune": 90.0, "gap": 1.0}}))
    done(*made_up)
    assert set(summary_of(folder)["checks"]) == set(CHECKS)


def test_a_summary_that_lacks_what_is_printed_is_named_before_anything_is_trained(refusal, unchecked, made_up):
    folder = unchecked()
    summary = summary_of(folder)
    del summary["search_seconds"]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "search_seconds: Field required" in refusal(*made_up)
    assert not (folder / "acc_and_sparsity_mask_shuffle.csv").exists()


def test_a_folder_without_finished_runs_says_so(refusal, tmp_path):
    assert "there is no finished run" in refusal("--only-sanity", "--sanity_folder", tmp_path)


def test_a_claimed_ticket_is_trained_and_checked(ran, refusal, places, tmp_path):
    ours, theirs = (build_model(parse_args([*SMALL, "--seed", seed])) for seed in ("42", "7"))
    masks = {}
    for name, weight in theirs.named_parameters():
        masks[name] = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3
        weight.data *= masks[name]
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    torch.save(ours.state_dict(), tmp_path / "dense.pth")
    folder = ran("--fine_tune_epochs", 1, "--only-sanity", "--ticket", tmp_path / "weights.pth")
    summary = summary_of(folder)
    assert (summary["algo"], set(summary["checks"])) == ("given", set(CHECKS))
    ticket, _ = read_ticket(folder / "ticket.safetensors")
    assert same_bits(ticket.masks, masks)
    for name, mask in masks.items():
        assert torch.equal(ticket.state[name], torch.where(mask, theirs.get_parameter(name), ours.get_parameter(name)))
    for file, said in (("nowhere.pth", "there is no ticket"), ("dense.pth", "without a zero")):
        assert said in refusal(*SMALL, *places, "--name", "other", "--ticket", tmp_path / file)


def test_a_ticket_of_a_run_is_taken_up_with_its_gem(ran, refusal, places):
    words = ["--unflag_before_finetune", "--lmbda", "5e-3", "--skip_sanity_checks"]
    first = ran(*words, name="first")
    words += ["--ticket", first / "ticket.safetensors"]
    again = ran(*words, name="again")
    same = ("weights_remaining", "gem_weights_remaining", "test_acc_before_finetune", "layers")
    before, after = ([summary_of(folder)[figure] for figure in same] for folder in (first, again))
    assert before == after
    assert "does not fit the network" in refusal(*SMALL, *places, *words, "--name", "wide", "--width", "0.5")


def test_a_run_does_not_go_on_with_another_ticket_of_the_same_path(done, refusal, unchecked, places, trial, tmp_path):
    path = tmp_path / "ticket.safetensors"
    one, other = (unchecked("--target_sparsity", target, name=target) / TICKET for target in ("30", "10"))
    given = [*SMALL, "--fine_tune_epochs", 1, *places, "--ticket", path, "--name", "given"]
    shutil.copy(one, path)
    done(*given, "--skip_sanity_checks")
    (trial("given") / "summary.json").unlink()
    shutil.copy(other, path)
    for words in (given, ["--resume", trial("given")]):
        assert f"begun with another file {path} (ticket) than is there now" in refusal(*words)
    shutil.copy(one, path)
    done("--resume", trial("given"), "--skip_sanity_checks")
    shutil.copy(other, path)  # of no use to the checks, which begin from the run's own ticket
    done("--only_sanity", "--sanity_folder", trial("given"))
    assert set(summary_of(trial("given"))["checks"]) == set(CHECKS)


def test_an_inverted_run_is_set_beside_the_run_it_inverts(ran, done, trial):
    words = ["--epochs", 2, "--fine_tune_epochs", 1, "--skip_sanity_checks"]
    upright = summary_of(ran(*words, name="upright"))
    inverted = summary_of(ran(*words, "--invert_sanity_check", name="inverted"))
    assert "inverts" not in upright
    margin = pytest.approx(upright["test_acc_after_finetune"] - inverted["test_acc_after_finetune"])
    trials = json.loads((trial("inverted").parent / "trials.json").read_text())
    assert inverted["inverts"]["margin"] == trials["checks"]["score_inversion"]["margin"] == margin
    shutil.rmtree(trial("upright"))
    done("--resume", trial("inverted"))
    assert summary_of(trial("inverted")) == inverted  # the comparison stays


@pytest.mark.parametrize("algo", ["snip", "mine.py:all_of_it"])
def test_a_ticket_that_was_found_without_training_is_not_searched_for_again(
    algo, call, done, places, trial, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    words = [*SMALL, "--algo", algo, "--skip_sanity_checks", *places]
    done(*words, "--name", "whole")
    with monkeypatch.context() as stopping:
        stopping.setattr(Stopping, "asked", property(lambda _: 143))
        assert call(*words, "--name", "stopped").code == 143
    # On another machine its scores, and so its masks, may be others, and weights that are drawn from a seed, too.
    monkeypatch.setattr("trainers.pipeline.load_algorithm", lambda _: raising(AssertionError))
    monkeypatch.setattr("trainers.tickets.file.drawn_again", raising(ValueError("drawn otherwise")))
    done("--resume", trial("stopped"))
    assert same_bits(timeless(trial("stopped")), timeless(trial("whole")))


def test_a_random_ticket_never_passes_against_its_own_shuffle(ran):
    folder = ran("--algo", "random", "--fine_tune_epochs", 3, "--num_trial", 3)
    verdict = json.loads((folder.parent / "trials.json").read_text())["checks"]["mask_shuffle"]
    assert (verdict["trials"], verdict["passes"]) == (3, False)


@pytest.mark.parametrize(
    ("words", "applied"),
    [("", []), ("--shuffle", ["mask_shuffle"]), ("--shuffle --chg_weight", ["weight_shuffle"]),
     ("--reinit", ["weight_reinit"]), ("--reinit --chg_mask", ["mask_shuffle"]),
     ("--shuffle --chg_mask --chg_weight", ["mask_shuffle", "weight_shuffle"])],
)  # fmt: skip
def test_a_random_subnet_has_the_check_applied_that_is_asked_for(words, applied, ran):
    options = ["--random_subnet", "--prune_rate", 0.3, "--skip_fine_tune"]
    plain, changed = ran(*options, name="plain"), ran(*options, *words.split(), name="changed")
    summary = summary_of(changed)
    assert summary["checks_applied"] == applied
    assert summary["weights_remaining_percent"] == pytest.approx(30, abs=1.5)
    before, after = (read_ticket(folder / "ticket.safetensors")[0] for folder in (plain, changed))
    assert torch.equal(before.masks["fc.weight"], after.masks["fc.weight"]) is ("mask_shuffle" not in applied)
    weights_stay = not {"weight_shuffle", "weight_reinit"} & set(applied)
    assert torch.equal(before.state["fc.weight"], after.state["fc.weight"]) is weights_stay


# ---- a user's own --------------------------------------------------------------------------------------------------

OWN = """
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket

def all_of(net, **more):
    masks = {name: weight > 0 for name, weight in prunable_parameters(net).items()}
    return Ticket(**{"state": plain_state(net), "masks": masks, **more})

def all_of_it(net, data, config, run):
    return all_of(net)

def live(net, data, config, run):
    return all_of(net, state=net.state_dict())
"""


def test_the_guides_algorithm_of_ones_own_runs_under_the_same_protocol(ran, tmp_path):
    [example] = [part for part in GUIDE.split("```") if part.startswith("python\n# mine.py")]
    assert len(example.splitlines()) <= 17
    (tmp_path / "mine.py").write_text(example.removeprefix("python\n"))
    own = f"{tmp_path}/mine.py:find_ticket"
    summary = summary_of(ran(*RANDOM, "--algo", own))
    assert (summary["algo"], set(summary["checks"])) == (own, set(CHECKS))
    assert summary["weights_remaining"] == int(0.2 * summary["weights_total"])


def test_a_ticket_of_the_networks_own_tensors_is_not_changed_by_its_training(ran, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    runs = [ran(*RANDOM, "--algo", f"{tmp_path}/mine.py:{one}", name=one) for one in ("all_of_it", "live")]
    copied, live = (read_ticket(run / TICKET)[0].state for run in runs)
    assert same_bits(live, copied)
    one, other = ([summary_of(run)["checks"][check]["test_acc_after_finetune"] for check in CHECKS] for run in runs)
    assert one == other


@pytest.mark.parametrize(("body", "said"), [
    ("return 1 / 0", "ZeroDivisionError: division by zero (line 16)"),
    ("return {'fc.weight': 1}", "returned dict, not a Ticket"),
    ("return Ticket(plain_state(net), {'fc.weight': net.fc.weight[:1] > 0})",
     "masks['fc.weight'] is not a boolean tensor of the shape"),
    ("return all_of(net, state={name: value[None] for name, value in plain_state(net).items()})",
     "its state is not the plain network's whole state_dict"),
    ("return all_of(net, facts={'score': net.fc.weight})", "its facts are not values of JSON"),
    ("return all_of(net, masks=None)", "its state, masks and gem have to map names to tensors"),
    ("return all_of(net, masks={'fc.weight': net.fc.weight > 0})",
     "masks are not those of all prunable weights: conv1.weight, layer1.0.conv1.weight, "),
    ("return all_of(net, facts={'scoring_flops': 'many'})", "its scoring_flops are no whole number"),
    ("return all_of(net, facts={'seconds': 'long'})", "the summary has a field of its own for seconds"),
    ("return all_of(net, facts={'score': float('inf')})", "its facts are not values of JSON"),
    ("return all_of(net, facts=None)", "its facts have to be a mapping"),
    ("raise SystemExit(0)", "mine.py failed: SystemExit: 0 (line "),
])  # fmt: skip
def test_what_is_wrong_with_ones_own_algorithm_is_said(body, said, refusal, places, tmp_path):
    (tmp_path / "mine.py").write_text(f"{OWN}\ndef find(net, data, config, run):\n    {body}\n")
    (tmp_path / "runs" / "trial_1").mkdir(parents=True)  # of a run whose results are elsewhere
    assert said in refusal(*RANDOM, "--algo", f"{tmp_path}/mine.py:find", *places)
    assert "there is no function found in" in refusal(*RANDOM, "--algo", f"{tmp_path}/mine.py:found", *places)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.py", "runs"}
    assert (tmp_path / "runs" / "trial_1").is_dir()


def test_a_run_does_not_go_on_with_a_changed_algorithm_of_ones_own(done, refusal, places, trial, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    own = [*RANDOM, "--skip_sanity_checks", "--algo", f"{path}:all_of_it", *places]
    done(*own)
    path.write_text(f"{OWN}\n# changed")
    for words, way in ((own, "give --name"), (["--resume", trial()], "put that one back")):
        said = refusal(*words)  # also of a finished run: its results are not those of the new file
        assert f"begun with another file {path}:all_of_it (algo) than is there now" in said and way in said
    (trial() / "summary.json").unlink()
    assert "than is there now" in refusal("--resume", trial(), "--resume_anyway", "--fine_tune_lr", 0.05)
    path.write_text(OWN)
    done("--resume", trial(), "--skip_sanity_checks")


def test_epochs_of_ones_own_algorithm_stay_in_the_table_whatever_its_stage_is_called(same_after_a_stop, tmp_path):
    (tmp_path / "own.py").write_text(
        "from trainers.algorithms.cts import Recipe, Ticket, all_kept, plain_state, prunable_parameters, train_ticket\n"
        "def find(net, data, config, run):\n"
        "    ticket = Ticket(plain_state(net), all_kept(prunable_parameters(net)))\n"
        "    train_ticket(run, 'warm', net, ticket, data, Recipe.of_tuning(config))\n"
        "    return ticket\n"
    )
    assert same_after_a_stop(8, *RANDOM, "--algo", f"{tmp_path}/own.py:find")
