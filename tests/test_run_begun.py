"""Runs that an earlier version began, and this one goes on with (`golden/run_begun`, of version d1b2e37)."""

import shutil

import pytest
from conftest import PROJECT, read_rows, summary_of
from run_folders import make_run

BEGUN = PROJECT / "tests" / "golden" / "run_begun"


@pytest.mark.parametrize(("stage", "stored"), [("in_search", 3), ("in_finetune", 8)])
def test_a_run_that_an_earlier_version_began_comes_to_its_end(stage, stored, done, trial, tmp_path):
    folder = shutil.copytree(BEGUN / stage / "trial_1", trial())
    done("--resume", folder, "--log_dir", tmp_path / "runs")
    rows, undisturbed = read_rows(folder / "acc_and_sparsity.csv"), read_rows(BEGUN / "undisturbed.csv")
    columns = undisturbed[0].keys()  # later versions have more
    assert [{name: row[name] for name in columns} for row in rows[:stored]] == undisturbed[:stored]
    assert [(row["phase"], row["epoch"]) for row in rows] == [(row["phase"], row["epoch"]) for row in undisturbed]
    # Other processors round otherwise.
    for row, theirs in zip(rows[stored:], undisturbed[stored:]):
        assert float(row["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=0.02)
        assert float(row["model_sparsity"]) == pytest.approx(float(theirs["model_sparsity"]), abs=0.5)
    assert summary_of(folder)["weights_remaining"] == pytest.approx(131, abs=1)


def test_options_that_contradict_by_now_keep_no_finished_run_from_the_report(done, refusal, trial, tmp_path):
    config = make_run(trial(), algo="ep", lmbda=1e-3) / "config.yml"
    config.write_text(config.read_text().replace("regularization: none", "regularization: bin_entropy"))
    assert "finished runs: 1, " in done("--report", tmp_path / "results").out
    assert "is finished: nothing to do" in done("--resume", trial()).out
    (trial() / "summary.json").unlink()
    assert "bin_entropy is for scores in [0, 1]" in refusal("--resume", trial())
