"""Every network of the table: names, sizes, options, a step under masks; and which way the imports point."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from args_helper import Config, parse_args
from data import DATASETS
from data.spec import DataSpec
from models import MODELS, build_model
from models.masking import masked_layers, prunable_parameters, to_masked
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.hypercube import GemMiner
from trainers.loop import train_step
from utils.errors import UserError
from utils.masks import is_bias

ROOT = Path(__file__).resolve().parent.parent
FIGURES = [path for path in sorted((ROOT / "tests" / "golden").glob("*.json")) if path.stem.partition("_")[0] in MODELS]
GOLDEN = {path.stem: json.loads(path.read_text()) for path in FIGURES}


def config(arch: str, dataset: str = "CIFAR10", **options: object) -> Config:
    return parse_args([f"--{name}={value}" for name, value in {"arch": arch, "dataset": dataset, **options}.items()])


def build(arch: str, dataset: str = "CIFAR10", **options: object) -> nn.Module:
    return build_model(config(arch, dataset, **options))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in prunable_parameters(network).items() if not is_bias(name)}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in weights(network).values())


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((4, *shape), generator=generator), torch.randint(10, (4,), generator=generator)


# ---- names and sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_layers_have_the_published_names_order_and_shapes(name):
    figures = GOLDEN[name]
    network = build(figures["case"].get("cfg", {}).get("arch", "resnet20"))
    shapes = [[layer.removesuffix(".weight"), list(weight.shape)] for layer, weight in weights(network).items()]
    assert shapes == figures["prunable"]


# Worked out from the papers' tables: CIFAR10 (3×32×32) and Digits (1×8×8), ten classes.
COUNTS = {
    # 3072·500 + 500² + 500·10; 64·500 + ...
    "FC": (1_791_000, 287_000),
    # 9·(3·64 + 64²) + 64·16²·256 + 256² + 256·10; 9·(64 + 64²) + 64·4²·256 + ...
    "Conv2": (4_300_992, 367_680),
    # 9·(3·64 + 64² + 64·128 + 128²) + 128·8²·256 + ...; 9·(64 + ...) + 128·2²·256 + ...
    "Conv4": (2_425_024, 457_792),
    # 9·(3·16 + 6·16² + 16·32 + 5·32² + 32·64 + 5·64²) + 64·10
    "resnet20": (268_336, 268_048),
    # 9·(3·16 + 10·16² + 16·32 + 9·32² + 32·64 + 9·64²) + 64·10
    "resnet32": (461_872, 461_584),
    # 9·(3·32 + 10·32² + 32·64 + 9·64² + 64·128 + 9·128²) + 128·10
    "resnet32_double": (1_845_344, 1_844_768),
}


@pytest.mark.parametrize("arch", COUNTS)
def test_a_network_has_the_number_of_weights_worked_out_by_hand(arch):
    assert (count(build(arch)), count(build(arch, "Digits"))) == COUNTS[arch]


@pytest.mark.parametrize(
    ("arch", "layers"), [("FC", 3), ("Conv2", 5), ("Conv4", 7), ("resnet20", 20), ("resnet32", 32)]
)
def test_a_network_has_as_many_layers_as_its_name_says(arch, layers):
    assert len(weights(build(arch))) == layers


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_is_made_of_ordinary_layers_without_masks(arch):
    network = build(arch)
    assert masked_layers(network) == {}
    assert not [name for name in network.state_dict() if "scores" in name or "flag" in name]


# ---- a step under masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["CIFAR10", "Digits"])
@pytest.mark.parametrize("arch", MODELS)
def test_a_network_learns_scores_in_every_layer_and_no_weight(arch, dataset):
    options = config(arch, dataset, lr=0.1, wd=0, hc_quantized=True, quantize_threshold=0.4)
    network = to_masked(build_model(options))
    for layer in masked_layers(network).values():
        layer.scores.data.fill_(0.5)
    before = {name: weight.clone() for name, weight in weights(network).items()}
    images, labels = batch(3, 32, 32) if dataset == "CIFAR10" else batch(1, 8, 8)
    search = GemMiner(network, options)

    logits = network(images)
    assert logits.shape == (4, 10)
    loss, _, seen = train_step(search, 0, images, labels).tolist()
    assert 0 < loss / seen < 20
    assert all(bool((layer.scores != 0.5).any()) for layer in masked_layers(network).values())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(network).items())


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_answers_for_each_image_by_itself_when_it_evaluates(arch):
    network = build(arch, "Digits").eval()
    images, _ = batch(1, 8, 8)
    together = network(images)
    torch.testing.assert_close(torch.cat([network(one[None]) for one in images]), together, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", MODELS)
def test_width_is_a_factor_of_every_hidden_width(arch):
    full, half = (weights(build(arch, "Digits", width=width)) for width in (1, 0.5))
    assert full.keys() == half.keys()
    first, *_, last = full
    for name, weight in full.items():
        outputs, inputs = half[name].shape[:2]
        assert outputs == (10 if name == last else weight.shape[0] // 2)
        assert inputs == (weight.shape[1] if name == first else weight.shape[1] // 2)


@pytest.mark.parametrize("arch", MODELS)
def test_a_network_of_almost_no_width_keeps_a_channel(arch):
    network = build(arch, "Digits", width=0.001)
    assert min(min(weight.shape[:2]) for weight in weights(network).values()) == 1
    assert network.eval()(batch(1, 8, 8)[0]).shape == (4, 10)


def test_hidden_size_is_the_width_of_fc():
    shapes = [tuple(weight.shape) for weight in weights(build("FC", "Digits", hidden_size=30, width=2)).values()]
    assert shapes == [(60, 64), (60, 60), (10, 60)]


@pytest.mark.parametrize("arch", MODELS)
def test_a_bias_stands_beside_every_weight_if_asked_for_and_beside_none_by_default(arch):
    assert not [name for name in prunable_parameters(build(arch, "Digits")) if is_bias(name)]
    parameters = prunable_parameters(build(arch, "Digits", bias=True))
    names = [name for name in parameters if not is_bias(name)]
    assert len(parameters) == 2 * len(names)
    assert all(parameters[name.replace("weight", "bias")].shape == parameters[name].shape[:1] for name in names)


@pytest.mark.parametrize("arch", [arch for arch in MODELS if arch.startswith("resnet")])
@pytest.mark.parametrize(
    ("bn_type", "learned"), [("NonAffineBatchNorm", 0), ("AffineBatchNorm", 2), ("LearnedBatchNorm", 2)]
)
def test_the_batch_norms_are_of_the_type_asked_for(arch, bn_type, learned):
    norms = [module for module in build(arch, bn_type=bn_type).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len(weights(build(arch))) - 1  # after every convolution but the classifier
    assert all(len(list(norm.parameters())) == learned for norm in norms)


def test_a_network_has_an_output_for_every_class_of_the_data():
    spec = DataSpec((2, 12, 20), ("cat", "dog", "eel"), (0.5, 0.5), (0.5, 0.5))
    for arch in MODELS:
        network = build_model(config(arch), spec)
        assert network(torch.zeros(4, 2, 12, 20)).shape == (4, 3)


@pytest.mark.parametrize(
    ("arch", "shape", "message"),
    [
        ("Conv2", (3, 1, 8), "images of 1×8 are too small for 1 poolings by 2"),
        ("Conv4", (3, 8, 3), "images of 8×3 are too small for 2 poolings by 2"),
    ],
)
def test_images_too_small_for_the_poolings_are_refused(arch, shape, message):
    spec = DataSpec(shape, ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(UserError, match=message):
        build_model(config(arch), spec)


@pytest.mark.parametrize(("arch", "side"), [("Conv2", 2), ("Conv4", 4), ("resnet20", 1)])
def test_the_smallest_images_that_fit_are_taken(arch, side):
    spec = DataSpec((1, side, side), ("a", "b"), (0.0,), (1.0,))
    assert build_model(config(arch), spec).eval()(torch.zeros(2, 1, side, side)).shape == (2, 2)


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


@pytest.mark.parametrize("registry", [MODELS, ALGORITHMS], ids=["models", "algorithms"])
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


def test_the_options_are_known_without_importing_torch():
    code = "import sys, args_helper; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


PROJECT = {"main", "args_helper", "trainers", "models", "data", "utils"}
# main -> trainers -> {models, data} -> utils. `build_model` alone asks data for the shape that a data set declares.
MAY_IMPORT = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "models": {"models", "utils"},
    "trainers": {"trainers", "models", "data", "utils"},
}
EXCEPTIONS = {
    ("models/__init__.py", "data"),  # the shape that a data set declares
    ("trainers/pipeline.py", "args_helper"),  # reads the config of a run that is already there
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """The modules imported anywhere in a file, in functions too, but not for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        yield from runtime_imports(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT)
    imports = {name.partition(".")[0] for name in runtime_imports(ast.parse(path.read_text()))}
    assert "" not in imports  # a relative import would hide where it points
    outside = (imports & PROJECT) - MAY_IMPORT[relative.parts[0]]
    assert {(relative.as_posix(), package) for package in outside} <= EXCEPTIONS


def test_the_search_for_imports_finds_those_in_functions_and_leaves_out_those_for_types():
    code = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trainers.loop\nelse:\n    pass\n"
        "def f():\n    from models.layers import Round\n    import data, utils.masks\n"
    )
    assert list(runtime_imports(ast.parse(code))) == ["typing", "models.layers", "data", "utils.masks"]


@pytest.mark.parametrize("package", ["models", "data", "utils"])
def test_nothing_below_the_trainers_knows_an_algorithms_name(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & set(ALGORITHMS), path
