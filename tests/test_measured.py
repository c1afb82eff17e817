"""The README's table of results: made from files, current, and silent about what was not run."""

import yaml

from tests.conftest import PROJECT
from trainers.reporting import measured
from trainers.reporting.published import PUBLISHED
from utils.markdown import replace_between_markers


def test_the_readme_has_the_table_that_the_files_make():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    command = "python -m trainers.reporting.measured README.md"
    assert replace_between_markers(text, "results", measured.results()) == text, f"write it anew: {command}"


def test_without_runs_the_papers_figures_are_named_and_the_command_that_runs_them(tmp_path):
    [line] = measured.results(tmp_path).splitlines()
    assert line.startswith("Not run yet, ")
    assert "Gem-Miner at 1.44% (after training: 77.89)" in line
    assert line.count("% (") == len(PUBLISHED)
    assert (PROJECT / measured.COMMAND.rpartition(" ")[2]).is_file()


def test_finished_runs_are_taken_over_without_the_machines_own_and_stand_in_the_table(finished, ran, tmp_path):
    ran("--seed", 7, "--teacher", finished, name="other")
    kept = tmp_path / "kept"
    assert [measured.collect(place, kept) for place in (finished.parent, tmp_path / "results")] == [1, 1]
    files = ("acc_and_sparsity.csv", "config.yml", "summary.json", "ticket.safetensors")
    there = {str(path.relative_to(kept)) for path in kept.rglob("*.*")}
    assert there == {f"{run}/{name}" for run in ("trial_1", "other/trial_1") for name in files}
    options = yaml.safe_load((kept / "trial_1" / "config.yml").read_text())
    assert not {"results_dir", "log_dir", "threads"} & set(options) and options["width"] == 0.25
    rows = [line for line in measured.results(kept).splitlines() if "4 + 2 epochs of 1,294 images" in line]
    assert len(rows) == 2 and all("| Digits | cpu" in row for row in rows)
    assert ["images, with a teacher |" in row for row in rows] == ["| other |" in row for row in rows]


def test_nothing_to_take_over_is_told(tmp_path, capsys):
    (tmp_path / "README.md").write_text("<!-- results: begin --><!-- results: end -->")
    assert measured.main(["--collect", str(tmp_path), str(tmp_path / "README.md")]) == 2
    assert "there is no run" in capsys.readouterr().err
