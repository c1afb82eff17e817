"""The table of options in configs/OPTIONS.md: that it is what is declared, and how it is made."""

from pathlib import Path

import pytest

from args_helper import OPTIONS
from tests.toys import complaint
from trainers.option_table import option_table
from utils.markdown import replace_between_markers

BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
WRITTEN = (Path(__file__).parent.parent / "configs" / "OPTIONS.md").read_text(encoding="utf-8")


def test_the_options_are_written_as_they_are_declared():
    written = replace_between_markers(WRITTEN, "options", option_table())
    assert written == WRITTEN, "write it again: python -m trainers.option_table configs/OPTIONS.md"
    rows = [line for line in WRITTEN.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(OPTIONS)
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}
    assert "| `print_freq`, `-p` | `10` | whole, ≥ 1 | steps between refreshes of the progress bar |  |" in rows


def test_text_that_markdown_would_take_for_its_own_is_escaped(monkeypatch):
    monkeypatch.setattr(OPTIONS["lr"], "description", "a | b <c> *d*")
    assert "| a \\| b &lt;c> \\*d\\* |" in option_table()


def test_what_stands_around_the_markers_stays_and_what_stands_between_them_goes():
    text = f"before\n{BEGIN}old{END}\nafter"
    assert replace_between_markers(text, "options", "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter"


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, 2 * (BEGIN + END), 2 * BEGIN + END, END + BEGIN + END])
def test_a_text_without_its_two_markers_is_refused(text):
    assert "which have to stand in the text once each" in complaint(replace_between_markers, text, "options", "new")
