"""Every network of the table: names, sizes, options, seeds, and a step under masks."""

import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import same_bits
from torch import Tensor, nn
from toys import complaint, spec_of

from args_helper import Config, parse_args
from data.spec import DataSpec
from models import MODELS
from models.build import build_model
from models.layers import BATCH_NORMS, projection_strides
from models.masking import masked_layers, prunable_parameters, to_masked, to_plain
from trainers.algorithms.gem_miner import GemMiner
from trainers.training.loop import train_step
from utils.masks import is_bias

# The side of the smallest images that a network takes, where its poolings would leave nothing of one pixel.
SIDES = {"Conv2": 2, "Conv4": 4, "Conv4Wide": 4, "Conv6": 8, "Conv6Wide": 8, "Conv8": 16, "vgg16": 32, "tinyvgg16": 32}


@pytest.fixture(params=MODELS)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


def config(arch: str, dataset: str = "CIFAR10", **options: object) -> Config:
    return parse_args([f"--{name}={value}" for name, value in {"arch": arch, "dataset": dataset, **options}.items()])


def build(arch: str, dataset: str = "CIFAR10", **options: object) -> nn.Module:
    return build_model(config(arch, dataset, **options))


def small_spec(arch: str) -> DataSpec:
    side = max(8, SIDES.get(arch.removesuffix("Normal"), 1))
    return spec_of(3, side, side)


def build_small(arch: str, **options: object) -> nn.Module:
    """A quarter of the network's width, for the smallest images."""
    return build_model(config(arch, **{"algo": "snip", "width": 0.25, **options}), small_spec(arch))


def described(arch: str, *shape: int, classes: int = 10, **options: object) -> nn.Module:
    """The network at its full width, without any memory for its weights."""
    spec = spec_of(*(shape or (3, 32, 32)), classes=classes)
    with torch.device("meta"):
        return build_model(config(arch, **{"algo": "snip", **options}), spec)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in prunable_parameters(network).items() if not is_bias(name)}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in weights(network).values())


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((4, *shape), generator=generator), torch.randint(10, (4,), generator=generator)


# ---- names and sizes -----------------------------------------------------------------------------------------------


# Worked out from the papers' tables. Those of other networks are golden, or torchvision's.
@pytest.mark.parametrize(("arch", "shape", "classes", "wanted"), [
    # 3072·500 + 500² + 500·10; 64·500 + ...
    ("FC", (3, 32, 32), 10, 1_791_000), ("FC", (1, 8, 8), 10, 287_000),
    # 9·(3·64 + 64²) + 64·16²·256 + 256² + 256·10; 9·(64 + 64²) + 64·4²·256 + ...
    ("Conv2", (3, 32, 32), 10, 4_300_992), ("Conv2", (1, 8, 8), 10, 367_680),
    # 9·(3·64 + 64² + 64·128 + 128²) + 128·8²·256 + 256² + 256·10
    ("Conv4Wide", (3, 32, 32), 10, 2_425_024),
    # 9·(... + 128·256 + 256²) + 256·4²·256 + 256² + 256·10
    ("Conv6", (3, 32, 32), 10, 2_261_184), ("Conv6Wide", (3, 32, 32), 10, 2_261_184),
    # 9·(... + 256·512 + 512²) + 512·2²·256 + 256² + 256·10
    ("Conv8", (3, 32, 32), 10, 5_275_840),
    # 9·(3·16 + 10·16² + 16·32 + 9·32² + 32·64 + 9·64²) + 64·10
    ("resnet32", (3, 32, 32), 10, 461_872),
    # 9·(3·32 + 10·32² + 32·64 + 9·64² + 64·128 + 9·128²) + 128·10
    ("resnet32_double", (3, 32, 32), 10, 1_845_344),
    # Blocks of a stage cost 17c² each, but 4c² instead of their first 1×1's for a wider or narrower input, and the
    # projection: 212 992 + 1 212 416 + 7 077 888 + 14 942 208 = 23 445 504; 9·3·64 and 2048·10 more.
    ("cResNet50", (3, 32, 32), 10, 23_467_712),
    # 9·(3·64 + 64² + 64·128 + 128² + 128·256 + 2·256² + 256·512 + 5·512²) + 512·200
    ("tinyvgg16", (3, 64, 64), 200, 14_812_864),
    # the golden 2 261 824 and 1280·190
    ("tinyMobileNetV2", (3, 64, 64), 200, 2_505_024),
])  # fmt: skip
def test_a_network_has_the_number_of_weights_worked_out_by_hand(arch, shape, classes, wanted):
    assert count(described(arch, *shape, classes=classes)) == wanted


@pytest.mark.parametrize("arch", ["ResNet18", "ResNet50", "ResNet101", "WideResNet50_2", "WideResNet101_2"])
def test_a_resnet_has_the_names_and_shapes_of_torchvisions(arch):
    own = described(arch, 3, 224, 224, classes=1000, bn_type="AffineBatchNorm").state_dict()
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch.lower().replace("wider", "wide_r")).state_dict()
    del theirs["fc.bias"]
    theirs["fc.weight"] = theirs["fc.weight"][:, :, None, None]  # a 1×1 convolution
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}


@pytest.mark.parametrize("arch", ["ResNet18", "ResNet50"])
def test_a_resnet_computes_what_torchvisions_does(arch):
    own = build(arch, bn_type="AffineBatchNorm").eval()
    theirs = torchvision.models.get_model(arch.lower(), num_classes=10).eval()
    state = own.state_dict()
    state["fc.weight"] = state["fc.weight"].flatten(1)
    theirs.load_state_dict({**state, "fc.bias": torch.zeros(10)})
    images, _ = batch(3, 40, 56)
    torch.testing.assert_close(own(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_control_network_without_masks_is_the_same_network(arch):
    normal, own = build_small(f"{arch}Normal"), build_small(arch)
    assert same_bits(normal.state_dict(), own.state_dict()) and masked_layers(own) == {}


# ---- a step under masks --------------------------------------------------------------------------------------------


def test_a_network_learns_scores_in_every_layer_and_its_weights_stay(arch):
    options, spec = config(arch, width=0.25, lr=0.1, wd=0, hc_quantized=True, quantize_threshold=0.4), small_spec(arch)
    network = to_masked(build_model(options, spec))
    before = {name: weight.clone() for name, weight in weights(network).items()}
    images, labels = batch(*spec.shape)
    search = GemMiner(network, options)
    search.flat.scores.data.fill_(0.5)
    assert network(images).shape == (4, 10)
    loss, _, seen = train_step(search, 0, images, labels).tolist()
    assert 0 < loss / seen < 20
    assert all(bool((layer.scores != 0.5).any()) for layer in masked_layers(network).values())
    assert same_bits(weights(network), before)


def test_a_network_answers_for_each_image_by_itself_when_it_evaluates(arch):
    network = build_small(arch).eval()
    images, _ = batch(*small_spec(arch).shape)
    together = network(images)
    torch.testing.assert_close(torch.cat([network(one[None]) for one in images]), together, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


# ---- options -------------------------------------------------------------------------------------------------------


def test_width_is_a_factor_of_every_hidden_width(arch):
    full, half = (weights(described(arch, width=width)) for width in (1, 0.5))
    assert full.keys() == half.keys()
    first, *_, last = full
    for name, weight in full.items():
        outputs, inputs = half[name].shape[:2]
        assert outputs == (10 if name == last else weight.shape[0] // 2)
        depthwise = weight.shape[1] == 1
        assert inputs == (weight.shape[1] if name == first or depthwise else weight.shape[1] // 2)


def test_a_network_of_almost_no_width_keeps_a_channel(arch):
    network = build_small(arch, width=0.001)
    assert min(min(weight.shape[:2]) for weight in weights(network).values()) == 1
    assert network.eval()(batch(*small_spec(arch).shape)[0]).shape == (4, 10)


def test_hidden_size_is_the_width_of_fc():
    shapes = [tuple(weight.shape) for weight in weights(build("FC", "Digits", hidden_size=30, width=2)).values()]
    assert shapes == [(60, 64), (60, 60), (10, 60)]


def test_a_bias_stands_beside_every_weight_if_asked_for_and_beside_none_by_default(arch):
    assert not [name for name in prunable_parameters(described(arch)) if is_bias(name)]
    parameters = prunable_parameters(described(arch, bias=True))
    names = [name for name in parameters if not is_bias(name)]
    assert len(parameters) == 2 * len(names)
    assert all(parameters[name.replace("weight", "bias")].shape == parameters[name].shape[:1] for name in names)


@pytest.mark.parametrize("arch", [arch for arch in MODELS if not arch.startswith(("FC", "Conv"))])
@pytest.mark.parametrize("bn_type", BATCH_NORMS)
def test_the_batch_norms_are_of_the_type_asked_for(arch, bn_type):
    norms = [module for module in described(arch, bn_type=bn_type).modules() if isinstance(module, nn.BatchNorm2d)]
    # After every convolution but the classifier; in a WideResNet before, not at its three shortcuts, and at the end.
    assert len(norms) == (25 if arch == "WideResNet28" else len(weights(described(arch))) - 1)
    assert all(len(list(norm.parameters())) == (0 if bn_type == "NonAffineBatchNorm" else 2) for norm in norms)


def test_a_network_has_an_output_for_every_class_of_the_data_and_takes_small_and_oblong_images(arch):
    side = SIDES.get(arch, 1)
    for wide in (side, side + 13):
        network = build_model(config(arch, width=0.1), spec_of(2, side, wide, classes=3)).eval()
        assert network(torch.zeros(4, 2, side, wide)).shape == (4, 3)


def test_the_first_and_the_last_layer_stay_dense_if_asked_for(arch):
    whole, network = described(arch), described(arch, first_layer_dense=True, last_layer_dense=True)
    assert [*weights(network)] == [*weights(whole)][1:-1]
    assert [*masked_layers(to_masked(network))] == [name.removesuffix(".weight") for name in weights(network)]
    assert to_plain(network).state_dict().keys() == whole.state_dict().keys()


def test_a_layer_that_stays_dense_is_drawn_like_any_other_and_stays_out_of_the_search():
    plain, ends = build("resnet20", width=0.25), {"first_layer_dense": True, "last_layer_dense": True}
    options = config("resnet20", width=0.25, wd=0, lr=0.1, hc_quantized=True, **ends)
    network = build_model(options)
    assert same_bits(network.state_dict(), plain.state_dict())
    search = GemMiner(to_masked(network), options)
    train_step(search, 0, *batch(3, 32, 32))
    assert search.flat.flags.numel() == count(plain) - plain.conv1.weight.numel() - plain.fc.weight.numel()
    assert torch.equal(network.conv1.weight, plain.conv1.weight)


def test_weights_that_are_trained_beside_the_scores_are_also_those_of_dense_layers():
    options = config("resnet20", width=0.25, lr=0.1, first_layer_dense=True, freeze_weights=False)
    network = to_masked(build_model(options))
    before = network.conv1.weight.clone()
    train_step(GemMiner(network, options), 0, *batch(3, 32, 32))
    assert not torch.equal(network.conv1.weight, before)


@pytest.mark.parametrize(("kind", "layers"), [("DenseConv", 19), ("SubnetConv", 20), ("None", 20)])
def test_the_first_layers_type_says_whether_it_is_dense(kind, layers):
    assert len(weights(described("resnet20", first_layer_type=kind))) == layers


def test_a_network_all_of_whose_layers_stay_dense_is_refused(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef net(spec):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    said = complaint(build, f"{file}:net", "Digits", last_layer_dense=True)
    assert re.search(r"the network has nothing to mask: .* does not stay dense", said)


def test_frozen_parameters_of_a_network_are_told_to_be_trained(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef net(spec):\n    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "    network[1].bias.requires_grad = False\n    return network\n"
    )
    with pytest.warns(UserWarning, match="froze 1.bias, which fine-tuning will train"):
        build(f"{file}:net", "Digits")


@pytest.mark.parametrize(("arch", "shape", "poolings"), [
    ("Conv2", (1, 8), "1 pooling"), ("Conv4", (8, 3), "2 poolings"), ("Conv6", (8, 7), "3 poolings"),
    ("Conv8", (15, 16), "4 poolings"), ("vgg16", (8, 8), "5 poolings"),
])  # fmt: skip
def test_images_too_small_for_the_poolings_are_refused(arch, shape, poolings):
    least, (height, width) = SIDES[arch], shape
    message = f"images of {width}×{height} are too small for {poolings} by 2: {least}×{least} is the smallest size"
    assert message in complaint(build_model, config(arch), spec_of(3, *shape))


def test_a_data_set_whose_files_alone_tell_its_shape_has_to_be_read_first():
    assert "dataset ImageFolder is known only once they are read" in complaint(build, "resnet20", "ImageFolder")


# ---- seeds ---------------------------------------------------------------------------------------------------------


def same(first: nn.Module, second: nn.Module) -> bool:
    return same_bits(weights(first), weights(second))


def test_weights_are_a_function_of_seed_and_trial_but_with_fixed_init_the_same_in_every_trial():
    network = build("resnet20", seed=3)
    torch.manual_seed(99)
    assert same(network, build("resnet20", seed=3))
    assert not same(network, build("resnet20", seed=4))
    assert not same(network, build("resnet20", seed=3, trial_num=2))
    network = build("resnet20", seed=3, fixed_init=True)
    assert same(network, build("resnet20", seed=4, trial_num=2, fixed_init=True))
    assert not same(network, build("resnet20", seed=3, fixed_init=True, seed_fixed_init=25))


@pytest.mark.parametrize(("channels", "side"), [(7, 8), (7, 9), (8, 8)])
def test_a_divided_stride_is_the_stride(channels, side):
    torch.manual_seed(0)
    images, weight = torch.randn(2, channels, side, side).double(), torch.randn(3, channels, 1, 1).double()
    every, own = projection_strides(channels, 2)
    assert (every, own) == ((2, 1) if channels == 7 else (1, 2))
    assert torch.allclose(
        F.conv2d(images[..., ::every, ::every], weight, stride=own), F.conv2d(images, weight, stride=2)
    )


@pytest.mark.parametrize(("arch", "block"), [("cResNet18", "layer2.0"), ("WideResNet28", "block2.layer.0")])
def test_a_block_with_a_projection_of_few_channels_has_its_gradients(arch, block):
    torch.manual_seed(0)
    network = build(arch, width=0.06)
    part, exact = network.get_submodule(block), deepcopy(network).double().get_submodule(block)
    images = torch.randn(8, part.conv1.in_channels, 32, 32).to(memory_format=torch.channels_last)
    assert images.shape[1] < 8
    for one, its in ((part, images), (exact, images.double())):
        one(its).square().mean().backward()
    for own, other in zip(part.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(own.grad.double(), other.grad, rtol=1e-3, atol=1e-5)
