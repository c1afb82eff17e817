"""Networks from elsewhere: torchvision's classifiers and their weights, factories in a user's own file."""

import re
from urllib.error import URLError

import pytest
import torch
import torchvision
from conftest import SMALL, raising, same_bits, summary_of, timeless
from safetensors.torch import load_file
from torch import nn
from toys import complaint, spec_of

from args_helper import config_of, parse_args
from models.build import build_model
from models.masking import masked_layers, prunable_parameters, to_masked
from trainers.algorithms.gem_miner import GemMiner
from trainers.tickets.file import read_ticket
from trainers.training.loop import train_step

WEIGHTS = torchvision.models.ResNet18_Weights


def build(arch: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 5, **options: object) -> nn.Module:
    return build_model(config_of({"arch": arch, **options}), spec_of(*shape, classes=classes))


# ---- torchvision ---------------------------------------------------------------------------------------------------


def test_a_torchvision_network_has_an_output_for_every_class_and_learns_under_masks():
    options = {"arch": "torchvision/resnet18", "init": "signed_constant", "seed": 3}
    network = build(**options)
    assert type(network) is torchvision.models.ResNet and network.training
    assert sum(name.endswith("weight") for name in prunable_parameters(network)) == 21
    assert network.conv1.weight.abs().unique().tolist() == pytest.approx([(2 / (3 * 7 * 7)) ** 0.5], rel=1e-6)
    search = GemMiner(to_masked(network), config_of({**options, "lr": 0.1, "wd": 0, "hc_quantized": True}))
    before = search.flat.scores.detach().clone()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    train_step(search, 0, images, torch.tensor([0, 1, 2, 4]))
    assert not torch.equal(search.flat.scores, before)


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121", "googlenet"])
def test_other_families_of_torchvision_can_be_masked(name):
    network = to_masked(build(f"torchvision/{name}", (3, 64, 64)))
    assert len(masked_layers(network)) > 20
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)  # in training too: no auxiliary classifiers


def test_biases_that_a_network_has_of_its_own_are_kept_by_every_mask_and_trained(ran, tmp_path):
    file = tmp_path / "nets.py"
    file.write_text("from torch import nn\ndef net(spec):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    run = ran("--arch", f"{file}:net", "--epochs", 2, "--save_model", "--skip_sanity_checks")
    summary = summary_of(run)
    assert (summary["weights_total"], summary["layers"].keys()) == (640, {"1"})
    drawn = build_model(parse_args([*SMALL, "--arch", f"{file}:net"])).get_parameter("1.bias")
    assert list(read_ticket(run / "ticket.safetensors")[0].masks) == ["1.weight"]
    assert (load_file(run / "model.safetensors")["1.bias"] != drawn).all()


@pytest.mark.parametrize(("name", "nearest"), [("ResNet50", "; did you mean 'resnet50'?"), ("qqqqqq", "")])
def test_an_unknown_torchvision_name_is_refused_with_the_nearest(name, nearest):
    assert complaint(build, f"torchvision/{name}") == f"arch: torchvision has no classifier '{name}'{nearest}"


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (1, 32, 32)), ("squeezenet1_1", (3, 8, 8))])
def test_images_that_a_torchvision_network_cannot_take_are_refused(name, shape):
    wanted = f"arch: torchvision/{name} cannot take images of shape {'×'.join(map(str, shape))}: "
    assert complaint(build, f"torchvision/{name}", shape=shape).startswith(wanted)


@pytest.fixture
def published(monkeypatch):
    """The weights that torchvision would download, here drawn."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(WEIGHTS, "get_state_dict", lambda *_, **__: state)
    return state


@pytest.mark.parametrize(
    ("weights", "classes", "fresh"), [("DEFAULT", 5, ["fc.weight", "fc.bias"]), ("IMAGENET1K_V1", 1000, [])]
)
def test_pretrained_weights_are_loaded_and_a_classifier_of_other_classes_is_drawn(weights, classes, fresh, published):
    network = build("torchvision/resnet18", classes=classes, weights=weights).state_dict()
    drawn = build("torchvision/resnet18", classes=classes).state_dict()
    assert same_bits(network, {**published, **{name: drawn[name] for name in fresh}})
    assert network["fc.weight"].shape == (classes, 512)


def test_a_network_of_the_inception_family_computes_as_torchvisions_without_auxiliary_classifiers(monkeypatch):
    state = torchvision.models.googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(torchvision.models.GoogLeNet_Weights, "get_state_dict", lambda *_, **__: state)
    network = build("torchvision/googlenet", (3, 64, 64), classes=1000, weights="DEFAULT").eval()
    published = torchvision.models.get_model("googlenet", weights="DEFAULT").eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(images), published(images))


def test_weights_for_images_of_another_size_are_refused(monkeypatch):
    def of_grey_images(name, weights=None, **options):
        network = made(name, **options)
        network.conv1 = nn.Conv2d(1 if weights else 3, 64, 7, bias=False)
        return network

    made = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", of_grey_images)
    said = complaint(build, "torchvision/resnet18", weights="DEFAULT")
    assert said.startswith("weights DEFAULT does not fit the network: conv1.weight has shape (64, 1, 7, 7)")


def test_weights_that_there_are_not_are_refused_with_those_there_are():
    said = "weights: 'IMAGENET1K_V2' is not one of those of torchvision/resnet18: IMAGENET1K_V1, DEFAULT; did you mean "
    assert complaint(build, "torchvision/resnet18", weights="IMAGENET1K_V2") == f"{said}'IMAGENET1K_V1'?"


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("invalid hash value")])
def test_weights_that_cannot_be_downloaded_are_a_clear_error(error, monkeypatch):
    monkeypatch.setattr(WEIGHTS, "get_state_dict", raising(error))
    said = complaint(build, "torchvision/resnet18", weights="DEFAULT")
    assert said.startswith(f"weights: {WEIGHTS.DEFAULT.url} cannot be downloaded ({error}); fetch it by other means")
    assert said.endswith("checkpoints")


# ---- a file of the user's own --------------------------------------------------------------------------------------

OWN = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    hidden: int

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        hidden = spec.scaled(Sizes(8).hidden)
        self.conv = nn.Conv2d(spec.channels, hidden, 3, bias=spec.bias)
        self.scale = nn.Parameter(torch.rand(1))
        self.fc = nn.Linear(hidden, spec.classes, bias=spec.bias)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)) * self.scale)

def idle(spec):
    net = Net(spec)
    net.auxiliary = nn.Linear(8, 4)
    return net
def dropping(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, spec.classes))
def changed(spec, change):
    net = Net(spec)
    net.register_forward_hook(lambda _net, _images, logits: change(logits))
    return net
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "nets.py"
    file.write_text(OWN)
    return file


def test_a_factory_of_the_users_own_makes_a_network_like_any_other(own):
    network = build(f"{own}:Net", width=0.5, bias=True, init="unsigned_constant")
    assert {name: tuple(value.shape) for name, value in prunable_parameters(network).items()} == {
        "conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 4), "fc.bias": (5,),
    }  # fmt: skip
    assert len(network.conv.weight.unique()) == 1
    assert [*masked_layers(to_masked(network))] == ["conv", "fc"]


def test_a_layer_that_the_network_does_not_call_stays_dense(own):
    with pytest.warns(UserWarning, match="the network does not call auxiliary: such layers stay dense"):
        network = build(f"{own}:idle", bias=True)
    assert "auxiliary.weight" not in prunable_parameters(network)
    assert "conv.weight" in prunable_parameters(network)


@pytest.mark.parametrize("algo", ["hc_iter", "snip", "grasp"])
def test_dropout_is_drawn_from_the_seed(algo, own, ran):
    words = ["--arch", f"{own}:dropping", "--algo", algo, "--skip_sanity_checks"]
    assert same_bits(*(timeless(ran(*words, name=name)) for name in ("first", "second")))


def test_what_the_init_does_not_draw_derives_from_the_seed_too(own):
    first, second, other = (build(f"{own}:Net", seed=seed).scale.item() for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(("made", "said"), [
    ("spec.classes", "arch: {file}:net has to return a torch.nn.Module, not int"),
    ("spec.red", "arch: {file}:net fails: AttributeError: 'ModelSpec' object has no attribute 'red' (line 33)"),
    ("nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))", "{wrong_logits} (2, 2)"),
    ("changed(spec, lambda logits: (logits, None))", "{wrong_logits} tuple"),
    ("changed(spec, lambda logits: logits + 0j)", "{wrong_logits} numbers of torch.complex64"),
])  # fmt: skip
def test_a_function_that_makes_no_network_is_refused(made, said, own):
    own.write_text(f"{OWN}def net(spec):\n    return {made}\n")
    wrong_logits = "arch: two images should make logits of shape (2, 5), not"
    assert complaint(build, f"{own}:net") == said.format(file=own, wrong_logits=wrong_logits)


def test_a_file_that_is_not_there_or_fails_is_refused(own):
    assert complaint(build, "nowhere/nets.py:net") == "there is no file nowhere/nets.py to take net from"
    assert complaint(build, f"{own}:Nets") == f"there is no function Nets in {own}; did you mean 'Net'?"
    assert complaint(build, f"{own}:torch") == f"there is no function torch in {own}"
    for text, said in (
        ("x = 1\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (line 2)"),
        ("def net(:\n", "SyntaxError: "),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0 (line 2)"),
    ):
        own.write_text(text)
        assert complaint(build, f"{own}:net").startswith(f"{own} cannot be used: {said}")
    own.write_text("upper = str.upper\ndef net(spec): ...\n")  # `upper` belongs to no module
    assert complaint(build, f"{own}:nets") == f"there is no function nets in {own}; did you mean 'net'?"


@pytest.mark.parametrize("arch", ["torchvison/resnet18", "torchvision/", "nets.py:2 x", "nets.py:", "resnet2Normal"])
def test_what_is_neither_a_name_nor_one_of_the_patterns_is_refused_with_them(arch):
    said = complaint(config_of, {"arch": arch})
    assert re.search(f"'{arch}' is not one of FC, .*torchvision/<name>, <file>.py:<function>", said)
