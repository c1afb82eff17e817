"""Tickets as files: the same bits back, small, drawn again or refused, never damaged unnoticed, taken to other data."""

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL, same_bits, summary_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_sets import put_images
from torch import nn
from toys import complaint, seeded

from args_helper import Config, parse_args
from data.load import load_data
from models.build import build_model
from models.masking import plain_state, prunable_parameters
from trainers import load_ticket
from trainers.tickets.file import read_ticket, write_ticket
from trainers.tickets.format import _digest, is_ticket_file, read_stored, write_stored
from trainers.tickets.ticket import Ticket
from trainers.tickets.trained import trained
from trainers.training.loop import evaluate
from utils.masks import masked_state, random_masks

METRICS = {"test_acc_before_finetune": 12.5}


def made(*words: str, density: float = 0.05) -> tuple[Ticket, nn.Module, Config]:
    """A ticket on weights as drawn, with BatchNorm statistics of its own, and a gem."""
    config = parse_args([*SMALL, *words])
    net = build_model(config)
    state = plain_state(net)
    state |= {name: torch.rand(value.shape, generator=seeded(1)) for name, value in state.items() if "running" in name}
    parameters = prunable_parameters(net)
    generator = seeded(2)
    masks = random_masks(parameters, {n: max(1, int(density * p.numel())) for n, p in parameters.items()}, generator)
    gem = {name: mask & (torch.rand(mask.shape, generator=generator) < 0.7) for name, mask in masks.items()}
    return Ticket(state, masks, gem, {"rescued": False}), net, config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.safetensors"


@pytest.fixture
def stored(path: Path) -> Ticket:
    """A ticket that `path` has."""
    ticket, net, config = made()
    write_ticket(path, ticket, net, config, METRICS)
    return ticket


@pytest.mark.parametrize(
    "words",
    ["", "--init kaiming_normal --scale_fan --prune_rate 0.3", "--bias", "--bn_type AffineBatchNorm", "--fixed_init",
     "--first_layer_dense --last_layer_dense", "--arch FC --hidden_size 7 --init standard",
     "--width 1 --dataset CIFAR10 --arch torchvision/shufflenet_v2_x0_5"],
)  # fmt: skip
def test_weights_as_drawn_are_drawn_again_to_the_bit(words, path):
    ticket, net, config = made(*words.split())
    sizes = write_ticket(path, ticket, net, config, METRICS)
    assert not any(name.startswith("state/") for name in load_file(path))
    assert sizes["weights"] == 0
    again, about = read_ticket(path)
    assert (list(again.state), list(again.masks)) == (list(ticket.state), list(ticket.masks))
    assert same_bits(vars(again), vars(ticket))
    assert about["config_hash"] == config.config_hash and about["test_acc_before_finetune"] == 12.5
    assert sizes["file"] == path.stat().st_size == sum(sizes[n] for n in ("mask", "gem", "weights", "others", "header"))


def test_weights_are_drawn_again_whatever_type_and_device_a_notebook_has_set(stored, path):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert same_bits(read_ticket(path)[0].state, stored.state)
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_that_were_trained_are_stored_those_of_pruned_places_too(path):
    ticket, net, config = made()
    moved = ticket.state["fc.weight"].clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(9.0))
    trained = {**ticket.state, "fc.weight": moved}
    sizes = write_ticket(path, Ticket(trained, ticket.masks), net, config, {})
    assert sizes["weights"] == 4 * sum(mask.numel() for mask in ticket.masks.values())
    assert same_bits(read_ticket(path)[0].state, trained)
    assert same_bits(load_file(path)["state/fc.weight"], trained["fc.weight"])
    asked = write_ticket(path, ticket, net, parse_args([*SMALL, "--store_weights"]), {})
    assert asked["weights"] == sizes["weights"]
    assert same_bits(read_ticket(path)[0].state, ticket.state)


@pytest.mark.parametrize("kind", ["none", "same", "elsewhere"])
def test_a_gem_is_kept_beside_the_masks(kind, path):
    ticket, net, config = made()
    gem = {"none": None, "same": ticket.masks, "elsewhere": {n: ~mask for n, mask in ticket.masks.items()}}[kind]
    sizes = write_ticket(path, Ticket(ticket.state, ticket.masks, gem), net, config, {})
    assert same_bits(read_ticket(path)[0].gem, gem)
    assert (sizes["gem"] > 0) == (kind == "elsewhere")


def test_a_ticket_of_resnet20_takes_about_ten_thousand_bytes(path):
    ticket, net, config = made("--width", "1", density=0.0144)
    sizes = write_ticket(path, replace(ticket, gem=None), net, config, METRICS)
    assert sizes["mask"] < 3_900
    assert sizes["file"] < 11_000
    assert sizes["dense"] > 1_070_000


def test_the_draw_of_another_generator_is_refused(stored, path, monkeypatch):
    monkeypatch.setattr("trainers.tickets.file.derive_rng", lambda *_: torch.Generator().manual_seed(5))
    assert re.search("drawn from a seed.*other weights are drawn.*--store_weights", complaint(read_ticket, path))
    assert same_bits(read_stored(path).ticket.masks, stored.masks)  # which need no weights


def test_a_trained_network_is_loaded_where_other_weights_are_drawn(finished, monkeypatch):
    monkeypatch.setattr("trainers.tickets.file.derive_rng", lambda *_: torch.Generator().manual_seed(5))
    assert trained(finished, parse_args(["--resume", str(finished)])).is_trained


def test_every_damaged_byte_is_noticed(stored, path):
    content = path.read_bytes()
    places = torch.randint(len(content), (150,), generator=torch.Generator().manual_seed(0)).tolist()
    flipped = (content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :] for place in places)
    for damaged in (*flipped, content[: len(content) // 2]):
        path.write_bytes(damaged)
        assert "not a ticket, or is damaged" in complaint(read_ticket, path)


def test_tickets_of_the_first_format_are_read(path):
    ticket, _, _ = made()
    parts = {f"state/{name}": value for name, value in ticket.state.items()}
    for kind, masks in (("mask", ticket.masks), ("gem", ticket.gem)):
        parts |= {f"{kind}/{name}": mask.to(torch.uint8) for name, mask in masks.items()}
    header = {"order": list(parts), "about": {"algo": "hc"}, "facts": {"rescued": False}, "recipe": None}
    save_file(parts, path, {name: json.dumps(value) for name, value in header.items()})
    assert is_ticket_file(path)
    again, about = read_ticket(path)
    assert about == {"algo": "hc"}
    assert same_bits(vars(again), vars(ticket))
    assert list(again.masks) == list(ticket.masks)


def test_what_is_no_ticket_is_told_from_one(stored, path, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file(stored.state, other, {"format": "pt"})
    assert (is_ticket_file(other), is_ticket_file(path)) == (False, True)
    for header, said in (
        ({"format": "rare gems ticket 9"}, "format is 'rare gems ticket 9', which this version does not know"),
        ({"format": "rare gems ticket 2", "about": "{}"}, "checksum"),
    ):
        save_file(load_file(path), other, header)
        assert said in complaint(read_ticket, other)


HOSTILE = {
    "a layout that unpacks to a gigabyte": {"layout": zlib.compress(bytes(2**28), 9)},
    "a layout of nothing": {"layout": []},
    "masks of unknown layers": {"layout": {"masks": ["x"]}},
    "an unknown gem": {"layout": {"gem": [1]}},
    "a shape beyond all memory": {"layout": {"state": {"fc.weight": ["float32", [10**7, 10**7]]}}},
    "a negative shape": {"layout": {"state": {"fc.weight": ["float32", [-1, -16900]]}}},
    "a mask of other places": {"mask": b"\0" + zlib.compress(bytes(20_000))},
    "a draw of something else": {"draw": {"init": "__class__", "seed": 1}},
    "a draw of nothing": {"draw": []},
    "facts of no kind": {"facts": 3},
    "a recipe of no kind": {"recipe": {"lr": "x"}},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_with_the_right_checksum_is_refused(what, stored, path, refusal):
    parts, header = load_file(path), safe_open(path, "pt").metadata()
    del header["sha256"]
    for name, value in HOSTILE[what].items():
        if name == "layout" and not isinstance(value, bytes):
            layout = json.loads(zlib.decompress(bytes(parts["layout"].tolist())))
            value = zlib.compress(json.dumps({**layout, **value} if value else value).encode())
        if isinstance(value, bytes):
            parts[name] = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        else:
            header[name] = json.dumps(value)
    save_file(parts, path, {**header, "sha256": _digest(header, parts)})
    said = refusal("--ticket", path, "--evaluate")
    assert said.startswith(f"error: {path} ") and said.count("\n") == 1


# ---- elsewhere -----------------------------------------------------------------------------------------------------


def test_the_guides_three_lines_evaluate_a_ticket(finished, monkeypatch):
    text = (PROJECT / "trainers" / "tickets" / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(from trainers import load_ticket.*?)```", text, re.DOTALL).group(1)
    assert len(list(filter(None, block.splitlines()))) == 3
    config = parse_args(["--config", str(finished / "config.yml"), "--seed", "7"])
    model, data = build_model(config), load_data(config)
    monkeypatch.chdir(finished)
    names = {"model": model}
    exec(block, names)
    summary = summary_of(finished)
    assert sum(int(mask.sum()) for mask in names["masks"].values()) == summary["weights_remaining"]
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in names["masks"].items())
    load_ticket(finished / "ticket.safetensors", model, gem=True)
    assert evaluate(model, data.test) == pytest.approx(summary["test_acc_before_finetune"])


def test_a_network_that_does_not_fit_stays_as_it_was(finished):
    model = build_model(parse_args([*SMALL, "--width", "0.5"]))
    before = plain_state(model)
    said = complaint(load_ticket, finished / "ticket.safetensors", model)
    assert re.search(r"does not fit the network.*made with dataset Digits, arch resnet20, width 0\.25", said)
    assert same_bits(plain_state(model), before)


def test_a_ticket_alone_says_what_network_and_data_it_is_of(finished, done):
    ticket = finished / "ticket.safetensors"
    out = done("--evaluate", "--ticket", ticket).out
    assert out.startswith("resnet20 on Digits")
    assert f"{summary_of(finished)['test_acc_before_finetune']:.2f}%" in out
    config = parse_args(["--ticket", str(ticket), "--init", "standard"])
    assert (config.width, config.init, config.algo) == (0.25, "standard", "given")


def test_a_ticket_without_batchnorm_scales_is_trained_with_them(finished, ran):
    words = ["--ticket", finished / "ticket.safetensors", "--skip_sanity_checks", "--save_model"]
    accuracies = {}
    for kind in ("NonAffineBatchNorm", "AffineBatchNorm"):
        folder = ran(*words, "--bn_type", kind, name=kind)
        accuracies[kind] = summary_of(folder)["test_acc_before_finetune"]
        scales = [value for name, value in load_file(folder / "model.safetensors").items() if name == "bn1.weight"]
        assert bool(scales) == (kind == "AffineBatchNorm")
        assert not any(bool((one == 1).all()) for one in scales)  # they learn
    assert len(set(accuracies.values())) == 1


def test_code_that_a_ticket_names_is_not_run(path, tmp_path, done, refusal):
    ticket, _, _ = made()
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    options = {"arch": f"{tmp_path}/evil.py:net", "config": "x.yml", "width": 0.25, "pretrained": "x.pt"}
    write_stored(path, ticket, {"options": options})
    config = parse_args(["--ticket", str(path), "--evaluate"])
    assert (config.arch, config.width, config.config, config.pretrained) == ("resnet20", 0.25, None, None)
    done("--ticket", path, "--evaluate")
    said = f"a ticket does not choose which code runs: give --arch {tmp_path}/evil.py:net if you trust that file; "
    assert said in refusal("--ticket", path, "--evaluate", "--width", 1)
    write_stored(path, ticket, {"options": {**options, "dataset": 3}})
    assert "dataset (of the ticket" in refusal("--ticket", path, "--evaluate")


@pytest.mark.parametrize("claimed", [False, True])
def test_a_ticket_goes_over_to_another_number_of_classes(claimed, finished, path, done, refusal, places, tmp_path):
    pictures = tmp_path / "pictures"
    put_images(pictures, {f"{split}/kind_{number}": 12 for split in ("train", "test") for number in range(3)})
    other = ["--dataset", "ImageFolder", "--data", pictures, "--fine_tune_epochs", 1, "--threads", 1]
    other += ["--skip_sanity_checks", *places]
    ticket, net, config = made("--dataset", "CIFAR10", density=0.3)
    write_ticket(path, ticket, net, config, {})
    if claimed:
        ticket = replace(ticket, gem=None)
        save_file(masked_state(ticket.state, ticket.masks), path)
        other += ["--arch", config.arch, "--width", config.width]
    assert "another number of classes" in done("--ticket", path, *other).err
    again = read_ticket(tmp_path / "results" / "trial_1" / "ticket.safetensors")[0]
    for mine, theirs in ((again.masks, ticket.masks), (again.untrained, ticket.untrained)):
        fresh, before = mine["fc.weight"].float(), theirs["fc.weight"].float()
        assert fresh.shape[0] == 3
        assert fresh.mean().item() == pytest.approx(before.mean().item(), abs=0.02)
        assert torch.equal(mine["conv1.weight"], theirs["conv1.weight"])
    assert (again.untrained["fc.weight"] <= again.masks["fc.weight"]).all()
    assert torch.equal(again.state["bn1.running_mean"], ticket.state["bn1.running_mean"])

    said = refusal("--ticket", finished / "ticket.safetensors", *other, "--name", "grey")  # one channel, not three
    assert "conv1.weight has shape" in said and "made with dataset Digits" in said
    said = refusal("--ticket", finished / "ticket.safetensors", "--evaluate", "--arch", "resnet32")
    assert said.startswith("error: the ticket is of arch resnet20, and --arch says resnet32: leave --arch out; ")
