"""Every network of the table: names, sizes, options, a step under masks; and which way the imports point."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from args_helper import Config, parse_args
from data import DATASETS
from data.spec import DataSpec
from models import MODELS
from models.build import build_model
from models.masking import masked_layers, prunable_parameters, to_masked, to_plain
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.hypercube import GemMiner
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train_step
from trainers.training.weights import WeightTraining
from utils.errors import UserError
from utils.masks import is_bias

ROOT = Path(__file__).resolve().parent.parent
# The side of the smallest images that a network takes, where its poolings would leave nothing of 8×8 ones.
SIDES = {"Conv8": 16, "vgg16": 32, "tinyvgg16": 32}


def config(arch: str, dataset: str = "CIFAR10", **options: object) -> Config:
    return parse_args([f"--{name}={value}" for name, value in {"arch": arch, "dataset": dataset, **options}.items()])


def build(arch: str, dataset: str = "CIFAR10", **options: object) -> nn.Module:
    return build_model(config(arch, dataset, **options))


def spec_of(*shape: int, classes: int = 10) -> DataSpec:
    return DataSpec(shape, tuple(map(str, range(classes))), (0.0,) * shape[0], (1.0,) * shape[0])


def small_spec(arch: str) -> DataSpec:
    side = SIDES.get(arch.removesuffix("Normal"), 8)
    return spec_of(3, side, side)


def build_small(arch: str, **options: object) -> nn.Module:
    """A quarter of the network's width, for the smallest images."""
    return build_model(config(arch, **{"algo": "snip", "width": 0.25, **options}), small_spec(arch))


def described(arch: str, *shape: int, classes: int = 10, **options: object) -> nn.Module:
    """The network at its full width, without any memory for its weights."""
    with torch.device("meta"):
        return build_model(
            config(arch, **{"algo": "snip", **options}), spec_of(*(shape or (3, 32, 32)), classes=classes)
        )


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in prunable_parameters(network).items() if not is_bias(name)}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in weights(network).values())


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((4, *shape), generator=generator), torch.randint(10, (4,), generator=generator)


# ---- names and sizes -----------------------------------------------------------------------------------------------


# Worked out from the papers' tables.
COUNTS = [
    # 3072·500 + 500² + 500·10; 64·500 + ...
    ("FC", (3, 32, 32), 10, 1_791_000),
    ("FC", (1, 8, 8), 10, 287_000),
    # 9·(3·64 + 64²) + 64·16²·256 + 256² + 256·10; 9·(64 + 64²) + 64·4²·256 + ...
    ("Conv2", (3, 32, 32), 10, 4_300_992),
    ("Conv2", (1, 8, 8), 10, 367_680),
    # 9·(3·64 + 64² + 64·128 + 128²) + 128·8²·256 + ...; 9·(64 + ...) + 128·2²·256 + ...
    ("Conv4", (3, 32, 32), 10, 2_425_024),
    ("Conv4", (1, 8, 8), 10, 457_792),
    ("Conv4Wide", (3, 32, 32), 10, 2_425_024),
    # 9·(... + 128·256 + 256²) + 256·4²·256 + 256² + 256·10
    ("Conv6", (3, 32, 32), 10, 2_261_184),
    ("Conv6Wide", (3, 32, 32), 10, 2_261_184),
    # 9·(... + 256·512 + 512²) + 512·2²·256 + 256² + 256·10
    ("Conv8", (3, 32, 32), 10, 5_275_840),
    # 9·(3·16 + 6·16² + 16·32 + 5·32² + 32·64 + 5·64²) + 64·10
    ("resnet20", (3, 32, 32), 10, 268_336),
    ("resnet20", (1, 8, 8), 10, 268_048),
    # 9·(3·16 + 10·16² + 16·32 + 9·32² + 32·64 + 9·64²) + 64·10
    ("resnet32", (3, 32, 32), 10, 461_872),
    # 9·(3·32 + 10·32² + 32·64 + 9·64² + 64·128 + 9·128²) + 128·10
    ("resnet32_double", (3, 32, 32), 10, 1_845_344),
    # Stages 9·4·64², then 9·(c/2·c + 3·c²) + c/2·c for c = 128, 256, 512: 11 157 504; 9·3·64 and 512·10 more.
    ("cResNet18", (3, 32, 32), 10, 11_164_352),
    # 49·3·64 and 512 · the classes instead.
    ("TinyResNet18", (3, 64, 64), 200, 11_269_312),
    ("ResNet18", (3, 224, 224), 1000, 11_678_912),
    # Blocks of a stage cost 17c² each, but 4c² instead of their first 1×1's for a wider or narrower input, and the
    # projection: 212 992 + 1 212 416 + 7 077 888 + 14 942 208 = 23 445 504; the stem's and the classifier's as above.
    ("cResNet50", (3, 32, 32), 10, 23_467_712),
    ("ResNet50", (3, 224, 224), 1000, 25_502_912),
    # 17 further blocks of 17·256²
    ("ResNet101", (3, 224, 224), 1000, 44_442_816),
    # 9·(3·16 + 16·32 + 7·32² + 32·64 + 7·64² + 64·128 + 7·128²) + 16·32 + 32·64 + 64·128 + 128·10
    ("WideResNet28", (3, 32, 32), 10, 1_463_984),
    # 9·(3·64 + 64² + 64·128 + 128² + 128·256 + 2·256² + 256·512 + 5·512²) + 512 · classes
    ("vgg16", (3, 32, 32), 10, 14_715_584),
    ("tinyvgg16", (3, 64, 64), 200, 14_812_864),
    # 1280 · 190 between the two; the first is golden
    ("MobileNetV2", (3, 32, 32), 10, 2_261_824),
    ("tinyMobileNetV2", (3, 64, 64), 200, 2_505_024),
]


@pytest.mark.parametrize(("arch", "shape", "classes", "wanted"), COUNTS)
def test_a_network_has_the_number_of_weights_worked_out_by_hand(arch, shape, classes, wanted):
    assert count(described(arch, *shape, classes=classes)) == wanted


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("ResNet18", "resnet18"),
        ("ResNet50", "resnet50"),
        ("ResNet101", "resnet101"),
        ("WideResNet50_2", "wide_resnet50_2"),
        ("WideResNet101_2", "wide_resnet101_2"),
    ],
)
def test_a_resnet_has_the_names_and_shapes_of_torchvisions(arch, name):
    own = described(arch, 3, 224, 224, classes=1000, bn_type="AffineBatchNorm").state_dict()
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    shapes = {layer: value.shape for layer, value in own.items()}
    shapes["fc.weight"] = shapes["fc.weight"][:2]  # a 1×1 convolution
    assert shapes == {layer: value.shape for layer, value in theirs.items() if layer != "fc.bias"}


@pytest.mark.parametrize("arch", ["ResNet18", "ResNet50"])
def test_a_resnet_computes_what_torchvisions_does(arch):
    own = build(arch, bn_type="AffineBatchNorm").eval()
    theirs = torchvision.models.get_model(arch.lower(), num_classes=10).eval()
    state = own.state_dict()
    state["fc.weight"] = state["fc.weight"].flatten(1)
    theirs.load_state_dict({**state, "fc.bias": torch.zeros(10)})
    images, _ = batch(3, 40, 56)
    torch.testing.assert_close(own(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "layers"),
    [("FC", 3), ("Conv2", 5), ("Conv4", 7), ("Conv6", 9), ("Conv8", 11), ("resnet20", 20), ("resnet32", 32),
     ("vgg16", 14), ("cResNet18", 18 + 3), ("ResNet50", 50 + 4), ("ResNet101", 101 + 4), ("WideResNet28", 26 + 3),
     ("MobileNetV2", 54 + 4)],
)  # fmt: skip
def test_a_network_has_as_many_layers_as_its_name_says_and_its_projections(arch, layers):
    assert len(weights(described(arch))) == layers


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_is_made_of_ordinary_layers_without_masks(arch):
    network = described(arch)
    assert masked_layers(network) == {}
    assert not [name for name in network.state_dict() if "scores" in name or "flag" in name]


@pytest.mark.parametrize("arch", MODELS)
def test_the_control_network_without_masks_is_the_same_network(arch):
    normal, own = build_small(f"{arch}Normal"), build_small(arch)
    assert normal.state_dict().keys() == own.state_dict().keys()
    assert same(normal, own)


# ---- a step under masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_learns_scores_is_pruned_and_trains_what_is_left(arch):
    options = config(
        arch, width=0.25, lr=0.1, wd=0, hc_quantized=True, quantize_threshold=0.4,
        prune_type="ExactBottomK", override_prune_rate=True, prune_rate=0.6,
    )  # fmt: skip
    spec = small_spec(arch)
    network = to_masked(build_model(options, spec))
    for layer in masked_layers(network).values():
        layer.scores.data.fill_(0.5)
    before = {name: weight.clone() for name, weight in weights(network).items()}
    images, labels = batch(*spec.shape)
    search = GemMiner(network, options)

    logits = network(images)
    assert logits.shape == (4, 10)
    loss, _, seen = train_step(search, 0, images, labels).tolist()
    assert 0 < loss / seen < 20
    assert all(bool((layer.scores != 0.5).any()) for layer in masked_layers(network).values())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(network).items())

    search.after_epoch(5, lambda _: torch.Generator().manual_seed(0))
    masks = {name: mask.clone() for name, mask in search.flat.split(search.flat.flags).items()}
    network = to_plain(network).requires_grad_(True)
    ticket = Ticket({name: value.clone() for name, value in network.state_dict().items()}, masks)
    tuning = WeightTraining(network, ticket, Recipe.of_tuning(options))
    train_step(tuning, 0, images, labels)
    after = weights(network)
    assert sum(int((weight != 0).sum()) for weight in after.values()) <= round(0.4 * count(network)) + 1
    assert not any(bool(after[name][~mask].any()) for name, mask in masks.items())
    assert any(bool((after[name] != before[name])[mask].any()) for name, mask in masks.items())


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_answers_for_each_image_by_itself_when_it_evaluates(arch):
    network = build_small(arch).eval()
    images, _ = batch(*small_spec(arch).shape)
    together = network(images)
    torch.testing.assert_close(torch.cat([network(one[None]) for one in images]), together, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", MODELS)
def test_width_is_a_factor_of_every_hidden_width(arch):
    full, half = (weights(described(arch, width=width)) for width in (1, 0.5))
    assert full.keys() == half.keys()
    first, *_, last = full
    for name, weight in full.items():
        outputs, inputs = half[name].shape[:2]
        assert outputs == (10 if name == last else weight.shape[0] // 2)
        depthwise = weight.shape[1] == 1
        assert inputs == (weight.shape[1] if name == first or depthwise else weight.shape[1] // 2)


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_of_almost_no_width_keeps_a_channel(arch):
    network = build_small(arch, width=0.001)
    assert min(min(weight.shape[:2]) for weight in weights(network).values()) == 1
    assert network.eval()(batch(*small_spec(arch).shape)[0]).shape == (4, 10)


def test_hidden_size_is_the_width_of_fc():
    shapes = [tuple(weight.shape) for weight in weights(build("FC", "Digits", hidden_size=30, width=2)).values()]
    assert shapes == [(60, 64), (60, 60), (10, 60)]


@pytest.mark.parametrize("arch", MODELS)
def test_a_bias_stands_beside_every_weight_if_asked_for_and_beside_none_by_default(arch):
    assert not [name for name in prunable_parameters(described(arch)) if is_bias(name)]
    parameters = prunable_parameters(described(arch, bias=True))
    names = [name for name in parameters if not is_bias(name)]
    assert len(parameters) == 2 * len(names)
    assert all(parameters[name.replace("weight", "bias")].shape == parameters[name].shape[:1] for name in names)


@pytest.mark.parametrize("arch", [arch for arch in MODELS if not arch.startswith(("FC", "Conv"))])
@pytest.mark.parametrize(
    ("bn_type", "learned"), [("NonAffineBatchNorm", 0), ("AffineBatchNorm", 2), ("LearnedBatchNorm", 2)]
)
def test_the_batch_norms_are_of_the_type_asked_for(arch, bn_type, learned):
    norms = [module for module in described(arch, bn_type=bn_type).modules() if isinstance(module, nn.BatchNorm2d)]
    # After every convolution but the classifier; in a WideResNet before, not at its three shortcuts, and at the end.
    assert len(norms) == (25 if arch == "WideResNet28" else len(weights(described(arch))) - 1)
    assert all(len(list(norm.parameters())) == learned for norm in norms)


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_has_an_output_for_every_class_of_the_data_and_takes_oblong_images(arch):
    side = SIDES.get(arch, 8)
    network = build_model(config(arch, width=0.1), spec_of(2, side, side + 13, classes=3))
    assert network(torch.zeros(4, 2, side, side + 13)).shape == (4, 3)


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("ends", ["first", "last", "both"])
def test_the_first_and_the_last_layer_stay_dense_if_asked_for(arch, ends):
    first, last = ends != "last", ends != "first"
    whole = weights(described(arch))
    network = described(arch, first_layer_dense=first, last_layer_dense=last)
    assert [*weights(network)] == [*whole][first : -1 if last else None]
    assert [*masked_layers(to_masked(network))] == [name.removesuffix(".weight") for name in weights(network)]
    assert network.state_dict().keys() >= described(arch).state_dict().keys()
    to_plain(network)
    assert network.state_dict().keys() == described(arch).state_dict().keys()


def test_a_layer_that_stays_dense_is_drawn_like_any_other_and_stays_out_of_the_search():
    plain, ends = build("resnet20", width=0.25), {"first_layer_dense": True, "last_layer_dense": True}
    options = config("resnet20", width=0.25, wd=0, lr=0.1, hc_quantized=True, **ends)
    network = build_model(options)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in plain.state_dict().items())
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
    with pytest.raises(UserError, match=r"the network has nothing to mask: .* does not stay dense"):
        build(f"{file}:net", "Digits", last_layer_dense=True)


@pytest.mark.parametrize(
    ("arch", "shape", "message"),
    [
        ("Conv2", (3, 1, 8), "images of 1×8 are too small for 1 pooling by 2: 2×2 is the smallest size"),
        ("Conv4", (3, 8, 3), "images of 8×3 are too small for 2 poolings by 2: 4×4 is the smallest size"),
        ("Conv8", (3, 15, 16), "images of 15×16 are too small for 4 poolings by 2: 16×16 is the smallest size"),
        ("vgg16", (1, 8, 8), "images of 8×8 are too small for 5 poolings by 2: 32×32 is the smallest size"),
    ],
)
def test_images_too_small_for_the_poolings_are_refused(arch, shape, message):
    with pytest.raises(UserError, match=message):
        build_model(config(arch), spec_of(*shape))


@pytest.mark.parametrize(
    ("arch", "side"),
    [("Conv2", 2), ("Conv4", 4), ("Conv6", 8), ("Conv8", 16), ("vgg16", 32), ("resnet20", 1), ("ResNet18", 1),
     ("cResNet50", 1), ("WideResNet28", 1), ("MobileNetV2", 1)],
)  # fmt: skip
def test_the_smallest_images_that_fit_are_taken(arch, side):
    network = build_model(config(arch, width=0.1), spec_of(1, side, side, classes=2))
    assert network.eval()(torch.zeros(2, 1, side, side)).shape == (2, 2)


def test_a_data_set_whose_files_alone_tell_its_shape_has_to_be_read_first():
    with pytest.raises(UserError, match="dataset ImageFolder is known only once they are read"):
        build("resnet20", "ImageFolder")


# ---- seeds ---------------------------------------------------------------------------------------------------------


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(weight, weights(second)[name]) for name, weight in weights(first).items())


def test_weights_are_a_function_of_seed_and_trial():
    network = build("resnet20", seed=3)
    torch.manual_seed(99)
    assert same(network, build("resnet20", seed=3))
    assert not same(network, build("resnet20", seed=4))
    assert not same(network, build("resnet20", seed=3, trial_num=2))


def test_with_fixed_init_weights_are_the_same_in_every_trial():
    network = build("resnet20", seed=3, fixed_init=True)
    assert same(network, build("resnet20", seed=4, trial_num=2, fixed_init=True))
    assert not same(network, build("resnet20", seed=3, fixed_init=True, seed_fixed_init=25))


def test_the_init_asked_for_is_the_init_drawn():
    for name, weight in weights(build("resnet20", init="unsigned_constant")).items():
        fan = weight[0].numel()
        assert weight.unique().tolist() == pytest.approx([(2 / fan) ** 0.5], rel=1e-6), name


# ---- the residual block --------------------------------------------------------------------------------------------


def test_a_shortcut_takes_every_second_pixel_and_pads_new_channels_evenly_with_zeros():
    block = build("resnet20").layer2[0]
    images = torch.arange(16 * 4 * 4.0).view(1, 16, 4, 4)
    shortcut = block._shortcut(images)
    assert shortcut.shape == (1, 32, 2, 2)
    assert torch.equal(shortcut[:, 8:24], images[:, :, ::2, ::2])
    assert not bool(shortcut[:, :8].any())
    assert not bool(shortcut[:, 24:].any())


def test_a_block_whose_convolutions_are_off_hands_on_what_is_positive():
    block = build("resnet20").layer1[0].eval()
    for convolution in (block.conv1, block.conv2):
        convolution.weight.data.zero_()
    images = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(images), images.clamp(min=0))


# ---- the registries and the imports --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "registry",
    [MODELS, {name: row.function for name, row in ALGORITHMS.items()}],
    ids=["models", "algorithms"],
)
def test_a_registry_maps_names_to_plain_strings_that_lead_to_something(registry):
    for name, place in registry.items():
        assert type(name) is type(place) is str
        module, colon, attribute = place.partition(":")
        assert colon
        assert callable(getattr(import_module(module), attribute))


def test_the_data_sets_are_modules_that_declare_a_spec_and_load():
    for name, place in DATASETS.items():
        assert type(name) is type(place) is str
        module = import_module(place)
        assert callable(module.load)
        assert module.SPEC is None or isinstance(module.SPEC, DataSpec)
