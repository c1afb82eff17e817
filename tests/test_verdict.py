"""Verdicts over trials, and the summaries, tables and screens that tell of them."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import read_rows
from trainers.checks.verdict import Verdict, judge
from trainers.results.curves import curves
from trainers.results.references import Found
from trainers.results.screens import last_screen, trials_screen
from trainers.results.trials import beside_dense, finished_trials, write_summary, write_trials
from trainers.sweeping.comparison import write_comparison

EQUAL = "undecided: equal differences"
# Student's t at 97.5%, from a printed table, by degrees of freedom.
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


# ---- the paired test -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ticket", "check", "margin", "sd", "passes"),
    [([90, 91, 92], [85, 86.5, 86.5], 5, 0.5, True),
     ([90, 91, 92], [89, 89, 89], 2, 1, False),  # better on average, but 0 lies in the interval
     ([85, 86.5, 86.5], [90, 91, 92], -5, 0.5, False),  # worse beyond doubt
     ([80, 80, 80, 80], [78, 77, 75, 74], 4, math.sqrt(10 / 3), True),
     ([10, 50, 90], [9, 48.9, 89.1], 1, 0.1, True),  # far apart from trial to trial: compared in pairs
     ([91, 93], [90, 90], 2, math.sqrt(2), None),  # two trials have no verdict
     ([70, 70, 70], [70, 70, 69.9], 0.1 / 3, 0.1 / math.sqrt(3), False)],
)  # fmt: skip
def test_the_interval_is_that_of_the_paired_t_test(ticket, check, margin, sd, passes):
    verdict, n = judge(ticket, check), len(ticket)
    half = T_TABLE[n - 1] * sd / math.sqrt(n)
    assert (verdict.trials, verdict.margin, verdict.passes) == (n, pytest.approx(margin), passes)
    assert (verdict.low, verdict.high) == pytest.approx((margin - half, margin + half), abs=1e-3)
    assert passes is not None or str(verdict) == f"undecided ({n} of 3 trials)"


@pytest.mark.parametrize(
    ("ticket", "check", "said"),
    [([91], [90.5], "undecided (1 of 3 trials)"), ([90.5] * 2, [80.0] * 2, f"{EQUAL} (2 of 3 trials)"),
     ([70.0] * 3, [90.0] * 3, f"{EQUAL} (n = 3)"), ([70, 71, 72, 73], [70, 71, 72, 73], f"{EQUAL} (n = 4)"),
     ([97.5, 97.5 + 100 / 360, 97.5 + 200 / 360], [97.5 - 200 / 360, 97.5 - 100 / 360, 97.5], f"{EQUAL} (n = 3)")],
)  # fmt: skip
def test_one_trial_and_equal_differences_decide_nothing_and_have_no_interval(ticket, check, said):
    verdict = judge(ticket, check)
    assert verdict == Verdict(len(ticket), pytest.approx(ticket[0] - check[0]), None, None, None)
    assert str(verdict) == said


@pytest.mark.parametrize(("ticket", "check", "said"), [([1, 2, 3], [1, 2, 3, 4], "longer"), ([], [], "at least one")])
def test_trials_that_cannot_be_paired_are_refused(ticket, check, said):
    with pytest.raises(ValueError, match=said):
        judge(ticket, check)


# ---- summaries -----------------------------------------------------------------------------------------------------


def summary(trial: int, ticket: float = 90.0, checks: dict[str, float] | None = None, **other: Any) -> dict[str, Any]:
    """A finished trial's summary, its checks as name -> accuracy."""
    return {
        "algo": "hc_iter", "arch": "resnet20", "dataset": "Digits", "classes": 10, "trial": trial, "seed": 42 * trial,
        "as_drawn": True,
        "weights_total": 270896, "weights_remaining": 3900, "weights_remaining_percent": 1.4397,
        "gem_weights_remaining": 3800, "test_acc_before_finetune": 50.0, "test_acc_after_finetune": ticket,
        "val_acc_after_finetune": 80.0, "seconds": 75.4, "search_seconds": 50.2, "finetune_seconds": 20.4,
        "device": "a CPU", "config_hash": "abc", "rescued": False, "target_sparsity": 1.44, "density_reason": None,
        "effective_weights_remaining": 3900, "effective_weights_remaining_percent": 1.4397, "dead_layers": [],
        "dense": None,
        "checks": {name: {"test_acc_after_finetune": value} for name, value in (checks or {}).items()}, **other,
    }  # fmt: skip


def finish(parent: Path, *summaries: dict[str, Any]) -> list[dict[str, Any]]:
    """Write trials' summaries in the order given; what was written."""
    return [write_summary(parent / f"trial_{one['trial']}", one) for one in summaries]


def test_a_summary_is_written_with_its_verdicts(tmp_path):
    [written] = finish(tmp_path, summary(1, 90.0, {"mask_shuffle": 88.0}))
    assert json.loads((tmp_path / "trial_1/summary.json").read_text()) == written
    verdict = {"trials": 1, "margin": 2.0, "low": None, "high": None, "passes": None}
    assert written == {**summary(1), "checks": {"mask_shuffle": {"test_acc_after_finetune": 88.0, **verdict}}}


def test_the_third_trial_decides_over_all_three_each_check_by_itself(tmp_path):
    accuracies = [{"mask_shuffle": 86.0 + 0.1 * (k % 2) + k, "weight_reinit": 91.0 + 0.9 * k} for k in (1, 2, 3)]
    written = finish(tmp_path, *(summary(k, 90 + k, checks) for k, checks in enumerate(accuracies, start=1)))
    verdicts = [one["checks"]["mask_shuffle"] for one in written]
    assert [(one["trials"], one["passes"]) for one in verdicts] == [(1, None), (2, None), (3, True)]
    assert verdicts[2]["margin"] == pytest.approx((3.9 + 4.0 + 3.9) / 3)
    assert written[2]["checks"]["weight_reinit"]["passes"] is False


def test_a_trial_written_again_counts_once_and_another_experiment_beside_it_never(tmp_path):
    trials = [(1, 80.0, "abc"), (2, 80.0, "abc"), (3, 10.0, "other"), (2, 86.0, "abc")]
    written = finish(tmp_path, *(summary(k, 90.0, {"mask_shuffle": acc}, config_hash=h) for k, acc, h in trials))
    verdict = written[-1]["checks"]["mask_shuffle"]
    assert (verdict["trials"], verdict["margin"]) == (2, pytest.approx(7.0))


def test_trials_are_by_number_a_renamed_run_is_one_as_well_and_a_copy_no_other_one(tmp_path):
    finish(tmp_path, summary(10), summary(2), summary(1), summary(3, config_hash="other"))
    (tmp_path / "trial_2").rename(tmp_path / "renamed")
    (tmp_path / "trial_4").mkdir()
    shutil.copytree(tmp_path / "trial_1", tmp_path / "copy")
    for asked, first in (("trial_1", "trial_1"), ("renamed", "trial_1"), ("copy", "copy")):
        found = finished_trials(tmp_path / asked, "abc")
        numbers = [(folder.name, one["trial"]) for folder, one in found.items()]
        assert numbers == [(first, 1), ("renamed", 2), ("trial_10", 10)]


@pytest.mark.parametrize("damage", ["{", "[]", '{"config_hash": "abc"}'])
def test_a_broken_summary_is_named_and_stops_no_sibling(damage, tmp_path):
    finish(tmp_path, summary(1), summary(2))
    (tmp_path / "trial_1/summary.json").write_text(damage)
    with pytest.warns(UserWarning, match=r"trial_1/summary\.json.*it is left out"):
        assert list(finished_trials(tmp_path / "trial_2", "abc")) == [tmp_path / "trial_2"]


# ---- over trials ---------------------------------------------------------------------------------------------------


def test_trials_are_told_by_mean_and_standard_deviation(tmp_path):
    finish(
        tmp_path,
        summary(1, 90.0, {"mask_shuffle": 85.0}, val_acc_after_finetune=None),
        summary(2, 92.0, val_acc_after_finetune=70.0, gem_weights_remaining=0),  # which skipped its check
        summary(3, 94.0, {"mask_shuffle": 87.0}, val_acc_after_finetune=None, gem_weights_remaining=None),
        summary(4, 10.0, {"mask_shuffle": 10.0}, config_hash="other"),
    )
    trials = write_trials(tmp_path / "trial_3", "abc")
    assert json.loads((tmp_path / "trials.json").read_text()) == trials
    assert (trials["config_hash"], trials["trials"]) == ("abc", [1, 2, 3])
    expected = {
        "test_acc_after_finetune": {"mean": 92.0, "sd": 2.0, "n": 3},  # of a sample: n − 1
        "test_acc_before_finetune": {"mean": 50.0, "sd": 0.0, "n": 3},
        "val_acc_after_finetune": {"mean": 70.0, "sd": None, "n": 1},
        "gem_weights_remaining": {"mean": 1900.0, "sd": pytest.approx(1900 * math.sqrt(2)), "n": 2},
        "weights_remaining_percent": {"mean": pytest.approx(1.4397), "sd": pytest.approx(0), "n": 3},
        "seconds": {"mean": pytest.approx(75.4), "sd": pytest.approx(0), "n": 3},
        "mask_shuffle_test_acc_after_finetune": {"mean": 86.0, "sd": pytest.approx(math.sqrt(2)), "n": 2},
    }
    assert {name: trials["figures"][name] for name in expected} == expected
    low, high = (pytest.approx(6 + sign * 12.706, abs=1e-3) for sign in (-1, 1))  # differences 5 and 7
    assert trials["checks"] == {"mask_shuffle": {"trials": 2, "margin": 6.0, "low": low, "high": high, "passes": None}}


def test_trials_without_fine_tuning_have_no_accuracy_after_it(tmp_path):
    finish(tmp_path, *(summary(k, test_acc_after_finetune=None) for k in (1, 2)))
    trials = write_trials(tmp_path / "trial_2", "abc")
    assert trials["figures"]["test_acc_after_finetune"] == {"mean": None, "sd": None, "n": 0}
    assert trials["checks"] == {}
    assert "test_acc_after_finetune" not in trials_screen(trials)


def test_an_inverted_run_is_judged_as_the_check_of_the_run_it_inverts(tmp_path):
    finish(tmp_path, *(summary(k, 50.0 + k, inverts={"test_acc_after_finetune": 90.0}) for k in (1, 2, 3)))
    trials = write_trials(tmp_path / "trial_1", "abc")
    verdict = trials["checks"]["score_inversion"]
    assert (verdict["margin"], verdict["passes"]) == (38.0, True)
    assert trials["figures"]["score_inversion_test_acc_after_finetune"] == {"mean": 52.0, "sd": 1.0, "n": 3}
    trials["figures"]["gap_to_dense"]["mean"] = 45.0  # of the inverted runs
    assert "dense" not in trials_screen(trials).splitlines()[-1]


def test_the_screen_over_trials_is_a_table(tmp_path):
    finish(tmp_path, *(summary(k, 90.0 + k, {"mask_shuffle": 86.0 + 2 * k}, seconds=10.0 * k) for k in (1, 2, 3)))
    heading, *lines = trials_screen(write_trials(tmp_path / "trial_3", "abc")).splitlines()
    assert heading == "over trials 1, 2, 3 (mean ± standard deviation)"
    rows = [" ".join(line.split()) for line in lines]
    assert {
        "test_acc_after_finetune 92.00 ± 1.00 (n = 3)", "seconds 20.00 ± 10.00 (n = 3)",
        "mask_shuffle_test_acc_after_finetune 90.00 ± 2.00 (n = 3)",
    } <= {*rows}  # fmt: skip
    assert rows[-1] == "mask_shuffle +2.00 points: fails (95% interval -0.48 to +4.48, n = 3)"


# ---- the last screen -----------------------------------------------------------------------------------------------


def screen(one: dict[str, Any]) -> list[str]:
    """The lines of the last screen, spaces made single."""
    return [" ".join(line.split()) for line in last_screen(one, Path("results/a"), Path("runs/a")).splitlines()]


def test_the_last_screen_tells_the_run(tmp_path):
    assert screen(finish(tmp_path, *(summary(k, 90.0, {"mask_shuffle": 85.0 + k}) for k in (1, 2, 3)))[-1]) == [
        "resnet20 on Digits, hc_iter, trial 3, seed 126",
        "weights remaining 3,900 of 270,896: 1.44%",
        "before any training 50.00% test accuracy, the gem of 3,800 weights (1.40%) as drawn; chance is 10%",
        "after training 90.00% test accuracy, 80.00% on validation",
        "sanity checks fine-tuned alike; the ticket should be better",
        "mask_shuffle 88.00% ticket +3.00 points on average: passes (95% interval +0.52 to +5.48, n = 3)",
        "seconds 75 on a CPU (search 50, fine-tuning 20)",
        "run folder results/a",
        "TensorBoard tensorboard --logdir runs/a",
    ]


def test_the_gap_to_dense_stands_beside_ticket_and_checks(tmp_path):
    one = summary(1, 90.0, {"mask_shuffle": 85.0})
    beside = beside_dense(one, Found(tmp_path / "dense", summary(1, 92.5), is_alike=True))
    found = {"test_acc_after_finetune": 92.5, "gap": 2.5, "run": str(tmp_path / "dense"), "trained_alike": True}
    assert beside["dense"] == found
    assert beside["checks"]["mask_shuffle"]["gap_to_dense"] == 7.5
    [written] = finish(tmp_path, beside)
    assert "dense network 92.50%: the ticket is 2.50 points below it" in screen(written)
    trials = write_trials(tmp_path / "trial_1", "abc")
    assert trials["figures"]["gap_to_dense"] == {"mean": 2.5, "sd": None, "n": 1}
    said = trials_screen(trials).partition("\n")[2]
    assert "; the ticket is 2.50 below dense" in said
    assert "±" not in said  # of one trial
    trials["figures"]["gap_to_dense"]["mean"] = -0.5
    assert "; the ticket is 0.50 above dense" in trials_screen(trials)
    assert beside_dense(one, None) == one
    otherwise = Found(tmp_path, summary(1, 92.5), is_alike=False)
    assert beside_dense(written, otherwise) == written  # the one that was trained alike is elsewhere by now
    said = screen(beside_dense({**written, "dense": None}, otherwise))
    assert f"dense network 92.50%: the ticket is 2.50 points below it; trained otherwise: {tmp_path}" in said
    # The dense run is elsewhere by now, and a check has been added: what was compared stays so.
    later = {**beside, "checks": {**beside["checks"], "weight_reinit": {"test_acc_after_finetune": 80.0}}}
    kept = beside_dense(later, None)
    assert kept["dense"] == beside["dense"] and kept["checks"]["weight_reinit"]["gap_to_dense"] == 12.5


UNTRAINED = {"test_acc_after_finetune": None, "val_acc_after_finetune": None, "gem_weights_remaining": None}
CUT = {"effective_weights_remaining": 3800, "effective_weights_remaining_percent": 1.4028, "dead_layers": ["a.b"]}


@pytest.mark.parametrize(("changes", "longer", "said"), [
    (UNTRAINED, -1, ["before any training 50.00% test accuracy (chance is 10%)"]),
    ({"val_acc_after_finetune": None}, 0, ["after training 90.00% test accuracy"]),
    ({"as_drawn": False}, 0,
     ["before fine-tuning 50.00% test accuracy, the gem of 3,800 weights (1.40%); chance is 10%"]),
    ({"algo": "imp", "as_drawn": None, "gem_weights_remaining": None}, 0,
     ["resnet20 on Digits, imp, trial 1, seed 42", "before fine-tuning 50.00% test accuracy (chance is 10%)"]),
    ({"rescued": True}, 1, ["rescued: the search had switched off every weight; these are the highest scores"]),
    ({"classes": 200, "gem_weights_remaining": None}, 0,
     ["before any training 50.00% test accuracy (chance is 0.5%)"]),
    ({"density_reason": "of ties", "target_sparsity": 1.5, **CUT}, 3,
     ["(the target was 1.5%: of ties)", "effective 1.40%: 100 weights are cut off from input or output",
      "dead layers a.b"]),
])  # fmt: skip
def test_the_last_screen_tells_what_there_is(changes, longer, said):
    usual, found = screen(summary(1)), screen(summary(1, **changes))
    assert [line for line in found if line not in usual] == said
    assert len(found) == len(usual) + longer


def test_control_networks_of_masks_that_moved_are_told_to_have_had_the_final_ones(tmp_path):
    [written] = finish(tmp_path, summary(1, 90.0, {"mask_shuffle": 85.0}, algo="gmp"))
    assert "sanity checks trained under the final masks; the ticket should be better" in screen(written)


def test_a_run_of_one_epoch_is_drawn_as_points():
    row = {"phase": "finetune", "test_acc": 90.0, "train_acc": 95.0, "model_sparsity": 1.4}
    figures = [curves([row] * epochs, summary(1)) for epochs in (1, 2)]
    assert [[axes.lines[0].get_marker() for axes in one.axes] for one in figures] == [["o", "o"], ["None", "None"]]
    assert not figures[1].axes[0].texts  # nothing to tell from a search
    assert all(float(tick).is_integer() for tick in figures[1].axes[1].get_xticks())


def test_the_words_on_a_plot_hide_no_curve():
    row = {"test_acc": 10.0, "train_acc": 10.0, "model_sparsity": 1.4}
    above = curves([{**row, "phase": phase} for phase in ("search", "finetune")], summary(1)).axes[0]
    assert above.texts[0].get_zorder() < min(line.get_zorder() for line in above.lines)


def test_a_sweep_judges_a_check_by_the_trials_that_ran_it(tmp_path):
    beside = {"dense": {"test_acc_after_finetune": 95.0, "gap": 5.0}}
    finish(tmp_path, summary(1, 90.0, {"mask_shuffle": 80.0}, **beside), summary(2, 91.0), summary(3, 92.0))
    lines = write_comparison(tmp_path, {"a|b": (tmp_path / "trial_1", SimpleNamespace(config_hash="abc"))})
    (row,) = read_rows(tmp_path / "comparison.csv")
    assert (row["trials"], row["mask_shuffle_trials"]) == ("3", "1")
    assert "| 91.00 ± 1.00 | 5.00 (n = 1) |" in lines
    assert "| a\\|b |" in lines and "| +10.00, undecided (n = 1) |" in lines
