"""Checkpoints: whole or not at all, noticed when damaged, the last ones kept."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import opened, same_bits
from tests.toys import complaint
from utils.run.checkpoints import Checkpoints, Keeping


@pytest.fixture
def there(tmp_path):
    """Return a function that reads every stored file, by its name."""
    return lambda: {path.stem: torch.load(path) for path in (tmp_path / "checkpoints").iterdir()}


def test_what_was_saved_of_a_stage_is_what_is_loaded(run):
    network = {"weight": torch.randn(3, 4, dtype=torch.float64), "flag": torch.tensor([True, False])}
    state = {"network": network, "rows": [{"epoch": 0, "val_acc": None, "phase": "search"}], "done": False}
    assert run.load("search") is None
    run.save("search", state)
    run.save("check/mask_shuffle", {"other": 1})
    again = opened(run.folder)
    stages = ("search", "check/mask_shuffle", "check/weight_reinit")
    assert same_bits([again.load(stage) for stage in stages], [state, {"other": 1}, None])


def test_a_damaged_checkpoint_is_named_with_what_to_do(run):
    run.save("search/round_3", {"weights": torch.arange(6.0)})
    path = run.folder / "checkpoints" / "search-round_3.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert complaint(run.load, "search/round_3") == (
        f"the checkpoint {path} cannot be read: it is damaged, and there is no earlier one to go on from; remove it to "
        "begin its stage again"
    )


@pytest.mark.parametrize(("options", "kept"), [
    ({"copies_every": 0}, []), ({"copies_every": 2}, ["finetune_1", "finetune_3", "search_1", "search_3"]),
    ({"copies_at": {"search": [{0, 4}]}}, ["search_0", "search_4"]),
    ({"copies_every": 4, "copies_at": {"search": [{3, 4}]}}, ["finetune_3", "search_3", "search_4"]),
], ids=str)  # fmt: skip
def test_copies_are_kept_of_the_epochs_asked_for(tmp_path, there, options, kept):
    run = opened(tmp_path, keeping=Keeping(**options, last=1))
    for stage in ("search", "finetune"):
        for epoch in range(5):
            run.save(stage, {"epoch": epoch, "half": True})  # in the middle of an epoch: never kept
            run.save(stage, {"epoch": epoch}, finished_epoch=epoch)
    copies = {f"{name[:-1]}epoch_00{name[-1]}": {"epoch": int(name[-1])} for name in kept}
    assert there() == {"search": {"epoch": 4}, "finetune": {"epoch": 4}, **copies}


def test_a_kill_between_a_checkpoint_and_its_copy_loses_no_copy(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("utils.run.checkpoints.write_atomic", lambda path, *_, **__: written.append(path.stem))
    opened(tmp_path, keeping=Keeping(copies_every=1)).save("search", {}, finished_epoch=0)
    assert written == ["search_epoch_000", "search"]


def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(run):
    states = [{"epoch": epoch, "weights": torch.randn(500)} for epoch in (1, 2)]
    for state in states:
        run.save("search", state)
    path, noticed = run.folder / "checkpoints" / "search.pt", 0
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with warnings.catch_warnings(record=True, action="always") as said:
            found = run.load("search")
        # A bit that pads the archive, or says when it was made, changes nothing of what is loaded.
        assert same_bits(found, states[0] if said else states[1])
        noticed += bool(said)
        assert all("search.pt is damaged: going on from search.1.pt" in str(one.message) for one in said)
    assert noticed > 0.5 * len(content) / 11


@pytest.mark.parametrize("last", [1, 2, 3])
def test_so_many_of_the_newest_are_kept(tmp_path, there, last):
    run = opened(tmp_path, keeping=Keeping(last=last))
    for epoch in range(6):
        run.save("search", {"epoch": epoch})
    newest = {"search": {"epoch": 5}, "search.1": {"epoch": 4}, "search.2": {"epoch": 3}}
    assert there() == dict(list(newest.items())[:last])


def test_a_crash_between_stepping_back_and_storing_costs_one_checkpoint(run):
    for epoch in (1, 2):
        run.save("search", {"epoch": epoch})
    (run.folder / "checkpoints" / "search.pt").unlink()
    assert run.load("search") == {"epoch": 1}


@pytest.mark.parametrize(("options", "due"), [
    ({}, [0, 1, 2, 3]), ({"every_epochs": 2}, [1, 3]), ({"every_seconds": 25.0}, [2]),
    ({"every_epochs": 3, "copies_at": {"search": [{0}]}}, [0, 2]), ({"every_seconds": 25.0, "copies_every": 4}, [2, 3]),
], ids=str)  # fmt: skip
def test_a_stage_is_stored_every_so_many_epochs_or_seconds(tmp_path, monkeypatch, options, due):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("utils.run.checkpoints.time", SimpleNamespace(monotonic=lambda: clock.now))
    stored = Checkpoints(tmp_path, Keeping(**options))
    for epoch in range(4):
        clock.now += 10.0
        assert stored.is_due("search") is ("every_seconds" in options and epoch == 2)  # within an epoch
        assert stored.is_due("search", epoch) is (epoch in due)
        if epoch in due:
            stored.save("search", {"epoch": epoch}, epoch)
