"""Builds networks from other sources: torchvision's classifiers, and a user's file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision import models as torchvision_models

from models.masking import keep_idle_dense
from models.spec import ModelSpec
from models.state_files import load_weights
from utils.errors import UserError, did_you_mean, first_of
from utils.user_code import load_function, reported

# Auxiliary classifiers would change the output in training. `init_weights` is off because the tool draws weights.
_INCEPTION: dict[str, Any] = {"aux_logits": False, "init_weights": False}
_ARGUMENTS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def torchvision_network(name: str, spec: ModelSpec) -> nn.Module:
    """Build torchvision's classifier of this name, with one output per class of the data.

    Args:
        name: torchvision's, without the prefix `torchvision/`.
        spec: classes and image shape; its layer options (`width`, `bias`, `batch_norm`) do not apply.

    Raises:
        UserError: torchvision has no such classifier, or it cannot take images of this shape.
    """
    known = torchvision_models.list_models(module=torchvision_models)
    if name not in known:
        raise UserError(f"arch: torchvision has no classifier '{name}'{did_you_mean(name, known)}")
    network = torchvision_models.get_model(name, num_classes=spec.classes, **_ARGUMENTS.get(name, {}))
    if hasattr(network, "transform_input"):  # the published weights of the Inception family expect inputs in [-1, 1]
        network.transform_input = spec.channels == 3
    try:
        _check_output(network, spec)
    except Exception as error:  # each torchvision family reports images that are too small differently
        shape = "×".join(map(str, spec.shape))
        raise UserError(f"arch: torchvision/{name} cannot take images of shape {shape}: {error}") from error
    return network


def load_torchvision_weights(network: nn.Module, name: str, weights: str) -> None:
    """Load torchvision's published weights into a network; a classifier of another number of classes stays as drawn.

    Args:
        network: built by `torchvision_network`.
        name: torchvision's name of the network.
        weights: `DEFAULT`, or the name of one of torchvision's weight sets for the network.

    Raises:
        UserError: the weight set does not exist, cannot be downloaded, or is for images of another size.
    """
    known = torchvision_models.get_model_weights(name).__members__
    if weights not in known:
        raise UserError(
            f"weights: '{weights}' is not one of those of torchvision/{name}: {', '.join(known)}"
            f"{did_you_mean(weights, known)}"
        )
    try:
        trained = torchvision_models.get_model(name, weights=weights).state_dict()
    except (OSError, RuntimeError) as error:
        url = known[weights].url
        raise UserError(
            f"weights: {url} cannot be downloaded ({error}); fetch it by other means and put it into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}"
        ) from error
    load_weights(network, {name: trained[name] for name in network.state_dict()}, f"weights {weights}")


def own_network(place: str, spec: ModelSpec) -> nn.Module:
    """Build a user's network by calling `path/to/file.py:factory` with a `ModelSpec`.

    Args:
        place: the path of the file and the name of the function.
        spec: what the function is called with; it may ignore the layer options.

    Raises:
        UserError: the file or function does not exist, or does not return a network that maps these images to logits.
    """
    factory, path = load_function(place), Path(place.rpartition(":")[0])
    with reported(path, f"arch: {place} fails"):
        network = factory(spec)
        if not isinstance(network, nn.Module):
            raise UserError(f"arch: {place} has to return a torch.nn.Module, not {type(network).__name__}")
        _check_output(network, spec)
    if frozen := [name for name, parameter in network.named_parameters() if not parameter.requires_grad]:
        told = f"arch: {place} froze {first_of(frozen, 3)}, which fine-tuning will train: make them buffers"
        warnings.warn(told, stacklevel=2)
    return network


def _check_output(network: nn.Module, spec: ModelSpec) -> None:
    """Check that a network maps two black images to logits (2, classes); layers that this did not call stay dense.

    Raises:
        UserError: the output has another shape or type.
    """
    was_training, called = network.training, set()
    with register_module_forward_hook(lambda module, *_: called.add(module)):
        output = network.eval()(torch.zeros(2, *spec.shape))
    network.train(was_training)
    keep_idle_dense(network, called)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if isinstance(output, Tensor) and not output.is_floating_point():
        found = f"numbers of {output.dtype}"
    if found != (2, spec.classes):
        raise UserError(f"arch: two images should make logits of shape {(2, spec.classes)}, not {found}")
