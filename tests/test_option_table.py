"""The table of options in configs/OPTIONS.md: that it is what is declared, and how it is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from args_helper import OPTIONS
from trainers.option_table import option_table, with_table
from utils.errors import UserError

BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
WRITTEN = (Path(__file__).parent.parent / "configs" / "OPTIONS.md").read_text(encoding="utf-8")


def test_the_options_are_written_as_they_are_declared() -> None:
    assert with_table(WRITTEN) == WRITTEN, "write it again: python -m trainers.option_table configs/OPTIONS.md"


@pytest.mark.parametrize(
    "row",
    [
        "| `batch_size` | `64` | whole, ≥ 1 | images a training step; a single one that is left joins the batch before "
        "it | ✓ |",
        "| `momentum` | `0.9` | number, ≥ 0, < 1 | momentum of SGD, in the search and after | ✓ |",
        "| `print_freq`, `-p` | `10` | whole, ≥ 1 | steps between refreshes of the progress bar |  |",
        "| `freeze_weights` | `true` | true, false | keep the weights as drawn while scores are learned | ✓ |",
        "| `lr_policy` | `constant_lr` | constant_lr, cosine_lr, multistep_lr | learning rate over the epochs of the "
        "search | ✓ |",
        "| `milestones` |  | whole numbers | epochs of those steps; default: the published ones | ✓ |",
        "| `fine_tune_epochs` |  | whole, ≥ 1 | epochs of fine-tuning; default: epochs | ✓ |",
    ],
)
def test_a_row_tells_names_default_what_is_allowed_the_meaning_and_what_it_affects(row: str) -> None:
    assert row in option_table().splitlines()


def test_every_option_has_one_row_of_five_cells() -> None:
    rows = [line for line in option_table().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(OPTIONS)
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}


def test_text_that_markdown_would_take_for_its_own_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIONS["lr"], "description", "a | b <c> *d*")
    assert "| a \\| b &lt;c> \\*d\\* |" in option_table()


def test_what_stands_around_the_markers_stays_and_what_stands_between_them_goes() -> None:
    written = with_table(f"before\n{BEGIN}old{END}\nafter")
    assert written.startswith(f"before\n{BEGIN}\n\n**Run: ")
    assert written.endswith(f" |\n\n{END}\nafter")
    assert "old" + END not in written
    assert with_table(written) == written


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_text_without_its_two_markers_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="which have to stand in the text once each"):
        with_table(text)
