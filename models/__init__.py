"""Networks by name. The table holds plain strings, so that listing the names imports nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from args_helper import Config
    from data.spec import DataSpec
    from models.spec import ModelSpec

MODELS = {
    "FC": "models.conv:FC",
    "Conv2": "models.conv:conv2",
    "Conv4": "models.conv:conv4",
    "Conv6": "models.conv:conv6",
    "Conv8": "models.conv:conv8",
    # Published as the networks whose widths `width_mult` scales; here `width` scales every network.
    "Conv4Wide": "models.conv:conv4",
    "Conv6Wide": "models.conv:conv6",
    "resnet20": "models.resnet_cifar:resnet20",
    "resnet32": "models.resnet_cifar:resnet32",
    "resnet32_double": "models.resnet_cifar:resnet32_double",
    "cResNet18": "models.resnet:small_resnet18",
    "cResNet50": "models.resnet:small_resnet50",
    "ResNet18": "models.resnet:resnet18",
    "ResNet50": "models.resnet:resnet50",
    "ResNet101": "models.resnet:resnet101",
    "WideResNet50_2": "models.resnet:wide_resnet50_2",
    "WideResNet101_2": "models.resnet:wide_resnet101_2",
    "WideResNet28": "models.wideresnet:wide_resnet28_2",
    "vgg16": "models.vgg:vgg16",
    "MobileNetV2": "models.mobilenet:MobileNetV2",
    # For the 64×64 images of Tiny ImageNet. The means over the image that end these networks fit any size.
    "TinyResNet18": "models.resnet:resnet18",
    "tinyvgg16": "models.vgg:vgg16",
    "tinyMobileNetV2": "models.mobilenet:MobileNetV2",
}
"""Name -> module:factory; a factory takes a `ModelSpec` and returns a network of ordinary PyTorch layers."""

WITHOUT_MASKS = "Normal"
"""Ending of the published names of networks without masks: `resnet20Normal` is resnet20, to be trained dense."""

TORCHVISION = "torchvision/"
"""In front of the name of a torchvision classifier."""


def build_model(config: Config, spec: DataSpec | None = None) -> nn.Module:
    """The plain network that a config names, its weights drawn from the config's seed, on the default device.

    With `weights` or `pretrained`, weights and BatchNorm then come from torchvision or from that file; its scores and
    flags, if it has any, are for the search to load.

    Args:
        config: `arch`, its layer options, and the init.
        spec: shape and classes of the data; by default those the data set declares.

    Raises:
        UserError: the data set's shape is only known from its files and no spec is given, the images are too small
            for the network, there is no such network, it has nothing to prune, or weights are missing or do not fit.
    """
    import torch

    from data import declared_spec
    from models.initialise import WeightDraw, draw_weights
    from models.masking import keep_dense, leave_biases, require_prunable
    from models.pretrained import load_weights, read_state
    from models.spec import ModelSpec
    from utils.run import derive_rng

    spec = spec or declared_spec(config.dataset)
    wanted = ModelSpec(spec.shape, len(spec.classes), config.width, config.bias, config.bn_type, config.hidden_size)
    with torch.random.fork_rng(devices=[]):
        # Parameters that are of no convolution or linear layer (a user's own) are drawn as the network is made.
        torch.manual_seed(derive_rng(config.init_seed, "init", "others").initial_seed())
        network = _network(config.arch, wanted)
    if not config.bias:
        leave_biases(network)  # those that a network from elsewhere has all the same
    keep_dense(network, config.first_is_dense, config.last_layer_dense)
    require_prunable(network)
    draw_weights(network, derive_rng(config.init_seed, "init", "weights"), WeightDraw.of(config))
    if config.weights:
        from models.external import load_torchvision_weights  # torchvision takes a second to import

        load_torchvision_weights(network, config.arch.removeprefix(TORCHVISION), config.weights)
    if config.pretrained:
        load_weights(network, read_state(config.pretrained), config.pretrained)
    return network


def _network(arch: str, spec: ModelSpec) -> nn.Module:
    """A network of this table, of torchvision's, or of a user's own file."""
    if ".py:" in arch:
        from models.external import own_network

        return own_network(arch, spec)
    if arch.startswith(TORCHVISION):
        from models.external import torchvision_network

        return torchvision_network(arch.removeprefix(TORCHVISION), spec)
    module, _, factory = MODELS[arch.removesuffix(WITHOUT_MASKS)].partition(":")
    return getattr(import_module(module), factory)(spec)
