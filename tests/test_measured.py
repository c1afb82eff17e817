"""The README's table of results: made from files, current, and silent about what was not run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT, SMALL, Outcome
from trainers.reporting import measured
from trainers.reporting.published import PUBLISHED
from utils.markdown import replace_between_markers

Call = Callable[..., Outcome]


def test_the_readme_has_the_table_that_the_files_make() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    command = "python -m trainers.reporting.measured README.md"
    assert replace_between_markers(text, "results", measured.results()) == text, f"write it anew: {command}"


def test_without_runs_the_papers_figures_are_named_and_the_command_that_runs_them(tmp_path: Path) -> None:
    [line] = measured.results(tmp_path).splitlines()
    assert line.startswith("Not run yet, ")
    assert "Gem-Miner at 1.44% (after training: 77.89)" in line
    assert line.count("% (") == len(PUBLISHED)
    assert (PROJECT / measured.COMMAND.rpartition(" ")[2]).is_file()


def test_finished_runs_are_taken_over_without_the_machines_own_and_stand_in_the_table(
    finished: Path, call: Call, places: list[str], tmp_path: Path
) -> None:
    assert call(*SMALL, *places, "--seed", 7, "--name", "other").code == 0
    assert measured.collect(finished.parent, tmp_path / "kept") == 1
    assert measured.collect(tmp_path / "results", tmp_path / "kept") == 1
    there = sorted(str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*.*"))
    assert there == sorted(
        f"{run}/{name}"
        for run in ("trial_1", "other/trial_1")
        for name in ("acc_and_sparsity.csv", "config.yml", "summary.json", "ticket.safetensors")
    )
    options = yaml.safe_load((tmp_path / "kept" / "trial_1" / "config.yml").read_text())
    assert not {"results_dir", "log_dir", "threads"} & set(options) and options["width"] == 0.25
    table = measured.results(tmp_path / "kept").splitlines()
    rows = [line for line in table if "4 + 2 epochs of 1,294 images" in line]
    assert len(rows) == 2
    assert all("| Digits | cpu" in row for row in rows)


def test_nothing_to_take_over_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("<!-- results: begin --><!-- results: end -->")
    assert measured.main(["--collect", str(tmp_path), str(tmp_path / "README.md")]) == 2
    assert "there is no run" in capsys.readouterr().err
