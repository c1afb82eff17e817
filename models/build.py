"""From the name of a network to the network, its weights drawn."""

from __future__ import annotations

import torch
from torch import nn

from args_helper import Config
from data.load import declared_spec
from data.spec import DataSpec
from models import MODELS, TORCHVISION, WITHOUT_MASKS
from models.initialise import WeightDraw, draw_weights
from models.masking import keep_dense, leave_biases, require_prunable
from models.spec import ModelSpec
from models.state_files import load_weights, read_state
from utils.registry import load_named
from utils.rng import derive_rng


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
        from models.networks.external import load_torchvision_weights  # torchvision takes a second to import

        load_torchvision_weights(network, config.arch.removeprefix(TORCHVISION), config.weights)
    if config.pretrained:
        load_weights(network, read_state(config.pretrained), config.pretrained)
    return network


def _network(arch: str, spec: ModelSpec) -> nn.Module:
    """A network of this table, of torchvision's, or of a user's own file."""
    if ".py:" in arch:
        from models.networks.external import own_network

        return own_network(arch, spec)
    if arch.startswith(TORCHVISION):
        from models.networks.external import torchvision_network

        return torchvision_network(arch.removeprefix(TORCHVISION), spec)
    return load_named(MODELS[arch.removesuffix(WITHOUT_MASKS)])(spec)
