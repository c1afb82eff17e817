"""What tickets have in common: by hand, of independent masks, and of files."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import read_rows

from trainers.analysis.ticket_overlap import overlap
from trainers.tickets.format import write_stored
from trainers.tickets.ticket import Ticket
from utils.masks import Masks, random_masks


def bits(*rows: str) -> torch.Tensor:
    return torch.tensor([[one == "1" for one in row] for row in rows])


BIAS = torch.tensor([True])
ONE = {"a.weight": bits("1100"), "a.bias": BIAS, "b.weight": bits("1010", "0000"), "c.weight": bits("00")}
OTHER = {"a.weight": bits("0110"), "a.bias": ~BIAS, "b.weight": bits("1111", "0001"), "c.weight": bits("00")}


def test_by_hand():
    names = ("layer", "weights", "kept_by_one", "kept_by_other", "kept_by_both", "jaccard", "by_chance")
    assert overlap(ONE, OTHER, "they") == [dict(zip(names, row)) for row in (
        ("a", 4, 2, 2, 1, 1 / 3, pytest.approx(1 / 3)),  # of 2 and 2 of 4, 1 is expected to coincide
        ("b", 8, 2, 5, 2, 2 / 5, pytest.approx(1.25 / 5.75)),  # 2 · 5 / 8 expected
        ("c", 2, 0, 0, 0, None, None),
        ("all layers", 14, 4, 7, 3, 3 / 8, pytest.approx(2.25 / 8.75)),
    )]  # fmt: skip


def test_independent_masks_overlap_as_chance_has_it():
    like = {"a.weight": torch.zeros(300, 300), "b.weight": torch.zeros(90, 1000)}
    counts = {"a.weight": 20_000, "b.weight": 5_000}
    drawn = [random_masks(like, counts, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for row in overlap(*drawn, "they"):
        assert row["jaccard"] == pytest.approx(row["by_chance"], rel=0.05)


def stored(path: Path, masks: Masks) -> Path:
    write_stored(path, Ticket({name: mask.float() for name, mask in masks.items()}, masks), {})
    return path


def test_files_are_compared_two_by_two(done, refusal, places, tmp_path):
    files = [stored(tmp_path / f"my ticket, {n}.safetensors", masks) for n, masks in enumerate((ONE, OTHER, ONE))]
    out = done("--compare-tickets", *files, *places).out
    assert out.count("all layers") == 3 and "0.3750" in out and "1.0000" in out
    rows = read_rows(tmp_path / "results" / "compare_tickets.csv")
    assert [(row["one"], row["other"]) for row in rows[::4]] == list(combinations(map(str, files), 2))
    other = stored(tmp_path / "other.safetensors", {"a.weight": bits("11")})
    said = "tickets of different networks: they differ in a.weight, a.bias"
    assert said in refusal("--compare_tickets", files[0], other, *places)
    assert "there is no ticket" in refusal("--compare_tickets", files[0], tmp_path / "none", *places)
    (tmp_path / "ticket.safetensors").touch()
    said = refusal("--compare_tickets", files[0], tmp_path, *places)
    assert f"{tmp_path} is a folder; its ticket is {tmp_path / 'ticket.safetensors'}" in said
