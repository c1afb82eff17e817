"""Builds a network by name, draws its weights, and masks it with scores for a search.

The same config gives the same weights on every rank and kind of device. Which layers stay dense and which biases have
no mask is marked before the draw, and changes none of its numbers.
"""

from __future__ import annotations

from pkgutil import resolve_name

from torch import nn

from args_helper import Config
from data.load import declared_spec
from data.spec import DataSpec
from models import MODELS, TORCHVISION, WITHOUT_MASKS
from models.initialise import WeightDraw, draw_scores, draw_weights
from models.masking import keep_dense, leave_biases, require_prunable, to_masked, warn_of_unmasked
from models.spec import ModelSpec
from models.state_files import load_scores, load_weights, read_state
from utils.rng import derive_rng, seeding_torch


def build_model(config: Config, spec: DataSpec | None = None) -> nn.Module:
    """Build the plain network that a config names, on the default device, with weights drawn from the config's seed.

    With `weights` (torchvision) or `pretrained` (a file), weights and BatchNorm are then loaded from there; the search
    loads the file's scores and flags, if it has any (`mask_with_scores`).

    Args:
        config: gives `arch`, the layer options, and the init.
        spec: shape and classes of the data; by default what the data set declares.

    Returns:
        A module without masks that maps normalised images (B, C, H, W) to logits (B, classes), in training mode.

    Raises:
        UserError: the network does not exist or has nothing to prune, the images are too small for it, weights are
            missing or do not fit, or no spec is given although the data set's shape depends on its files.
    """
    spec = spec or declared_spec(config.dataset)
    wanted = ModelSpec(spec.shape, len(spec.classes), config.width, config.bias, config.bn_type, config.hidden_size)
    # Parameters outside convolutions and linear layers (in a user's network) are drawn here, at construction.
    with seeding_torch(derive_rng(config.init_seed, "init", "others")):
        network = _network(config.arch, wanted)
    if not config.bias:
        leave_biases(network)  # torchvision's and users' networks have biases regardless of this option
    keep_dense(network, config.first_is_dense, config.last_layer_dense)
    require_prunable(network)
    warn_of_unmasked(network)
    draw_weights(network, derive_rng(config.init_seed, "init", "weights"), WeightDraw.of(config))
    if config.weights:
        from models.networks.external import load_torchvision_weights  # torchvision takes a second to import

        load_torchvision_weights(network, config.arch.removeprefix(TORCHVISION), config.weights)
    if config.pretrained:
        load_weights(network, read_state(config.pretrained), config.pretrained)
    return network


def mask_with_scores(network: nn.Module, config: Config, how: str) -> None:
    """Mask a network in place, with scores drawn from the config's seed, or those in `pretrained` if it has any.

    Args:
        network: plain.
        config: gives the seed and `pretrained`.
        how: scores are drawn, as for `draw_scores`.

    Raises:
        UserError: `pretrained` does not fit, or see `to_masked`.
    """
    to_masked(network)
    draw_scores(network, derive_rng(config.init_seed, "init", "scores"), how)
    if config.pretrained:
        load_scores(network, read_state(config.pretrained), config.pretrained)


def _network(arch: str, spec: ModelSpec) -> nn.Module:
    """Build a network of `MODELS`, of torchvision, or of a user's file."""
    if ".py:" in arch:
        from models.networks.external import own_network

        return own_network(arch, spec)
    if arch.startswith(TORCHVISION):
        from models.networks.external import torchvision_network

        return torchvision_network(arch.removeprefix(TORCHVISION), spec)
    return resolve_name(MODELS[arch.removesuffix(WITHOUT_MASKS)])(spec)
