"""Checkpoints: whole or not at all, noticed when damaged, the last ones kept."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

from utils.errors import UserError
from utils.run import checkpoints
from utils.run.checkpoints import Keeping
from utils.run.run import Run

STATE = {"epoch": 1, "network": {"weight": torch.arange(6.0)}}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", tmp_path / "log", seed=42)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: raw[:-100], id="cut off"),
        pytest.param(lambda raw: raw[: len(raw) // 2] + bytes(200) + raw[len(raw) // 2 + 200 :], id="zeros within"),
        pytest.param(lambda raw: bytes(len(raw)), id="all zeros"),
        pytest.param(lambda raw: b"hello world\n" * 9, id="text"),
        pytest.param(lambda raw: b".", id="a dot"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(run, damage):
    run.save("search/round_3", STATE)
    path = run.folder / "checkpoints" / "search-round_3.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as raised:
        run.load("search/round_3")
    assert str(raised.value) == (
        f"the checkpoint {path} cannot be read: it is damaged, and there is no earlier one to go on from; remove it to "
        "begin its stage again"
    )


def fail(*_args, **_options):
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(run, monkeypatch):
    run.save("search", {"epoch": 1})
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*search\.pt: No space left on device"):
        run.save("search", {"epoch": 2})
    assert run.load("search") == {"epoch": 1}
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["search.pt"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, []),
        ({"copies_every": 0}, []),
        ({"copies_every": 2}, ["finetune_1", "finetune_3", "search_1", "search_3"]),
        ({"copies_at": {"search": [{0, 4}]}}, ["search_0", "search_4"]),
        ({"copies_every": 4, "copies_at": {"search": [{3, 4}]}}, ["finetune_3", "search_3", "search_4"]),
    ],
    ids=str,
)
def test_copies_are_kept_of_the_epochs_asked_for(tmp_path, options, kept):
    run = Run(tmp_path, tmp_path, seed=1, keeping=Keeping(**options))
    for stage in ("search", "finetune"):
        for epoch in range(5):
            run.save(stage, {"epoch": epoch, "half": True})  # in the middle of an epoch: never kept
            run.save(stage, {"epoch": epoch}, finished_epoch=epoch)
    there = (tmp_path / "checkpoints").iterdir()
    copies = {path.stem: torch.load(path) for path in there if not path.stem.endswith(".1")}
    assert copies.pop("search") == copies.pop("finetune") == {"epoch": 4}
    stages = [name.rsplit("_", 1) for name in kept]
    assert copies == {f"{stage}_epoch_{int(epoch):03d}": {"epoch": int(epoch)} for stage, epoch in stages}


def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(run):
    states = [{"epoch": epoch, "weights": torch.randn(500)} for epoch in (1, 2)]
    for state in states:
        run.save("search", state)
    path, noticed = run.folder / "checkpoints" / "search.pt", 0
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = run.load("search")
        # A bit that pads the archive, or says when it was made, changes nothing of what is loaded.
        expected = states[0] if said else states[1]
        assert found["epoch"] == expected["epoch"] and torch.equal(found["weights"], expected["weights"])
        noticed += bool(said)
        assert all("search.pt is damaged: going on from search.1.pt" in str(one.message) for one in said)
    assert noticed > 0.5 * len(content) / 11


@pytest.mark.parametrize(("last", "there"), [(1, [5]), (2, [5, 4]), (3, [5, 4, 3])])
def test_so_many_of_the_newest_are_kept(tmp_path, last, there):
    run = Run(tmp_path, tmp_path, seed=1, keeping=Keeping(last=last))
    for epoch in range(6):
        run.save("search", {"epoch": epoch})
    names = [f"search{f'.{back}' if back else ''}.pt" for back in range(last)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(names)
    assert [torch.load(tmp_path / "checkpoints" / name)["epoch"] for name in names] == there


def test_a_crash_between_stepping_back_and_storing_costs_one_checkpoint(run):
    for epoch in (1, 2):
        run.save("search", {"epoch": epoch})
    (run.folder / "checkpoints" / "search.pt").unlink()
    assert run.load("search") == {"epoch": 1}


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({}, [0, 1, 2, 3]),
        ({"every_epochs": 2}, [1, 3]),
        ({"every_epochs": 3, "copies_at": {"search": [{0}]}}, [0, 2]),
        ({"every_seconds": 25.0}, [2]),
        ({"every_seconds": 25.0, "copies_every": 4}, [2, 3]),
    ],
    ids=str,
)
def test_a_stage_is_stored_every_so_many_epochs_or_seconds(tmp_path, monkeypatch, options, due):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: clock.now))
    run = Run(tmp_path, tmp_path, seed=1, keeping=Keeping(**options))
    stored = []
    for epoch in range(4):
        clock.now += 10.0
        assert run.is_due("search") is ("every_seconds" in options and epoch == 2)  # within an epoch
        if run.is_due("search", epoch):
            run.save("search", {"epoch": epoch}, epoch)
            stored.append(epoch)
    assert stored == due
