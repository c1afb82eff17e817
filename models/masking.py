"""Turns any plain network into a masked one and back; the names of its layers and parameters do not change.

The way through a search that learns scores: `to_masked` swaps the layers, `draw_scores` fills the scores, `set_rule`
says how they become masks, and `FlatScores` joins them for the optimizer. At its end `plain_state` gives the state of
the ticket, and `to_plain` swaps the layers back. All other algorithms need only `prunable_parameters` and
`plain_state`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn

from models.layers import DenseConv, DenseLinear, FullyConnected, MaskedFullyConnected, Rule, SubnetConv, SubnetLinear
from utils.errors import UserError, first_of
from utils.masks import Masks

# By exact type: a user's subclass of a layer may have its own forward, which a swap would lose.
_MASKED_COUNTERPART = {nn.Conv2d: SubnetConv, FullyConnected: MaskedFullyConnected, nn.Linear: SubnetLinear}
_PLAIN_COUNTERPART = {masked: plain for plain, masked in _MASKED_COUNTERPART.items()}
_DENSE_COUNTERPART = {nn.Conv2d: DenseConv, FullyConnected: DenseConv, nn.Linear: DenseLinear}
_PRUNABLE = frozenset({*_MASKED_COUNTERPART, *_PLAIN_COUNTERPART})
SCORE_NAMES = ("scores", "flag", "bias_scores", "bias_flag")
"""What the state_dict of a masked layer has beside that of the plain one."""


def to_masked(network: nn.Module) -> nn.Module:
    """Swap every convolution and linear layer that does not stay dense for its masked counterpart, in place.

    Weights remain the same tensors; scores and flags are all ones, so that the network still computes the same. Returns
    the network.

    Args:
        network: plain, on any device.

    Raises:
        UserError: a layer has two names or is the whole network, so it cannot be swapped; or there is no layer to swap.
    """
    require_prunable(network)
    return _swap(network, _MASKED_COUNTERPART)


def to_plain(network: nn.Module) -> nn.Module:
    """Undo `to_masked` in place: plain layers with the unmasked weights, no scores or flags. Returns the network.

    A network that is plain already stays as it is.
    """
    return _swap(network, _PLAIN_COUNTERPART)


def keep_dense(network: nn.Module, first: bool, last: bool) -> nn.Module:
    """Make the first or last layer, in network order, stay dense, in place: not masked, pruned or counted.

    Args:
        network: plain.
        first, last: which of the two. Returns the network.

    Raises:
        UserError: a layer has two names or is the whole network.
    """
    names = [name for name, module in network.named_modules() if type(module) in _DENSE_COUNTERPART]
    chosen = (names[:1] if first else []) + (names[-1:] if last else [])
    return _swap(network, _DENSE_COUNTERPART, chosen) if chosen else network


def keep_idle_dense(network: nn.Module, called: Collection[nn.Module]) -> None:
    """Make the layers that a forward pass did not call stay dense, in place, with a warning: masks would not act there.

    An auxiliary classifier is such a layer, and one whose weight the network hands to a function.

    Args:
        network: plain.
        called: the modules that were called.
    """
    layers = ((name, layer) for name, layer in network.named_modules() if type(layer) in _DENSE_COUNTERPART)
    if idle := [name for name, layer in layers if layer not in called]:
        listed = first_of(idle, 3)
        warnings.warn(f"the network does not call {listed}: such layers stay dense and are not counted", stacklevel=2)
        _swap(network, _DENSE_COUNTERPART, idle)


def warn_of_unmasked(network: nn.Module) -> None:
    """Warn of weights in other layers than convolutions and linear ones: they have no masks and are not counted.

    Args:
        network: plain.
    """
    known = {*map(id, layer_parameters(network).values())}
    others = {name: one.numel() for name, one in network.named_parameters() if one.dim() > 1 and id(one) not in known}
    if others:
        told = f"{sum(others.values()):,} weights have no masks, stay dense and are not counted"
        warnings.warn(f"{told}: {first_of([*others], 3)}", stacklevel=2)


def leave_biases(network: nn.Module) -> nn.Module:
    """Leave the biases of all layers unmasked, in place: they are not pruned or counted, and a search keeps them fixed.

    Args:
        network: plain. Returned.
    """
    for module in network.modules():
        if type(module) in _DENSE_COUNTERPART:
            module.bias_is_free = True  # as an attribute of the layer it survives swaps and copies
    return network


def masked_layers(network: nn.Module) -> dict[str, SubnetConv | SubnetLinear]:
    """Return the masked layers by name, in network order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, (SubnetConv, SubnetLinear))}


def prunable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> weight or bias of every convolution and linear layer, plain or masked, in network order.

    Without layers that stay dense and without unmasked biases.
    """
    return _parameters_of(network, _PRUNABLE, with_free_biases=False)


def layer_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the same as `prunable_parameters`, plus layers that stay dense and unmasked biases."""
    return _parameters_of(network, _PRUNABLE | {*_DENSE_COUNTERPART.values()})


def require_prunable(network: nn.Module) -> None:
    """Refuse a network in which nothing can be pruned, or a weight has two names.

    Raises:
        UserError: two layers share a weight, or a layer has two names; a weight is no parameter, or a parameter has
            integers; or no layer is exactly a Conv2d or Linear and does not stay dense.
    """
    for name, layer in network.named_modules():
        if type(layer) in _PRUNABLE and not isinstance(layer.weight, nn.Parameter):
            told = "as those of torch.nn.utils.weight_norm and spectral_norm: use torch.nn.utils.parametrizations"
            raise UserError(f"the weight of layer {name} is no parameter, {told}")
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            raise UserError(f"parameter {name} of the network is {parameter.dtype}: make it a buffer")
    parameters = prunable_parameters(network)
    names = {id(parameter): name for name, parameter in parameters.items()}
    # With duplicates: a state_dict has a parameter under each of its names, and loading it, the last one wins.
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if (other := names.get(id(parameter), name)) != name:
            what = "the whole network" if other.startswith(".") else f"also {name}"
            raise UserError(f"cannot mask {other}, which is {what}: give every layer a weight and a name of its own")
    if not parameters:
        raise UserError(
            "the network has nothing to mask: no layer of it is an nn.Conv2d or nn.Linear itself (a subclass of one is "
            "left alone) that does not stay dense (first_layer_dense, first_layer_type, last_layer_dense)"
        )


def set_rule(network: nn.Module, rule: Rule) -> None:
    """Set the rule that turns scores into masks in every masked layer."""
    for layer in masked_layers(network).values():
        layer.rule = rule


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Copy the state_dict of a masked network without scores and flags; no weight is multiplied by its mask."""
    own = {f"{layer}.{kind}" for layer in masked_layers(network) for kind in SCORE_NAMES}
    return {name: value.detach().clone() for name, value in network.state_dict().items() if name not in own}


class FlatScores:
    """Flattens all scores of a masked network into one parameter and all flags into one tensor; layers get views.

    One kernel then clamps, penalises, updates or ranks all of them. Weights come first, in network order, then
    biases. Make it last: moving, casting or copying the network afterwards would detach the views.

    Args:
        network: masked, on its device; its layers' scores and flags become views in place.

    Attributes:
        scores: (N + N_bias,) parameter, N prunable weights and N_bias masked biases. Its gradient is allocated here:
            keep it, or call `share_gradient`.
        flags: (N + N_bias,) bool.
        segments: the slices of the weights and, if there are any, of the biases.
        parts: the layers' scores, views of `scores` in the same order.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = masked_layers(network)
        places = [(name, layer, "") for name, layer in layers.items()]
        places += [(name, layer, "bias_") for name, layer in layers.items() if layer.bias_scores is not None]
        scores = [getattr(layer, f"{prefix}scores") for _, layer, prefix in places]
        self.scores = nn.Parameter(torch.cat([part.detach().flatten() for part in scores]))
        self.scores.grad = torch.zeros_like(self.scores)
        self.flags = torch.cat([getattr(layer, f"{prefix}flag").flatten() for _, layer, prefix in places])
        names = [f"{name}.{'bias' if prefix else 'weight'}" for name, _, prefix in places]
        self._shapes = dict(zip(names, (part.shape for part in scores)))
        self.parts = [nn.Parameter(view) for view in self.split(self.scores.detach()).values()]
        for (_, layer, prefix), part, flag in zip(places, self.parts, self.split(self.flags).values()):
            setattr(layer, f"{prefix}scores", part)
            setattr(layer, f"{prefix}flag", flag)
        self.share_gradient()
        weights = sum(layer.weight.numel() for layer in layers.values())
        biases = slice(weights, self.scores.numel())
        self.segments = [slice(0, weights)] + ([biases] if biases.stop > weights else [])

    def share_gradient(self) -> None:
        """Make the gradients of the layers' scores views of `scores.grad`, after that has become another tensor."""
        for part, gradient in zip(self.parts, self.split(self.scores.grad).values()):
            part.grad = gradient

    def share(self, mask: Tensor) -> float:
        """Return the fraction of the weights (not the biases) that a flat mask, (N + N_bias,) bool, keeps."""
        weights = mask[self.segments[0]]
        return int(weights.sum()) / weights.numel()

    def split(self, whole: Tensor) -> Masks:
        """Split a flat tensor (N + N_bias,) into views: parameter name -> tensor of the parameter's shape."""
        parts = whole.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts)}


def _parameters_of(
    network: nn.Module, kinds: frozenset[type[nn.Module]], with_free_biases: bool = True
) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{kind}": parameter
        for name, module in network.named_modules()
        if type(module) in kinds
        for kind, parameter in module.named_parameters(recurse=False)
        if kind == "weight" or (kind == "bias" and (with_free_biases or not _has_free_bias(module)))
    }


def _swap(
    network: nn.Module, counterparts: dict[type[nn.Module], type[nn.Module]], chosen: list[str] | None = None
) -> nn.Module:
    """Swap the layers of the types in `counterparts`, or only those with the chosen names."""
    places: dict[nn.Module, str] = {}
    # With duplicates, so that a layer with two names is seen: swapping it at one of them would split it in two.
    for name, layer in network.named_modules(remove_duplicate=False):
        if type(layer) in counterparts:
            if not name or layer in places:
                other = f"is also {places[layer]}" if layer in places else "is the whole network"
                raise UserError(
                    f"cannot mask layer '{name}', which {other}; give every layer a place and a name of its own"
                )
            places[layer] = name
    for layer, name in places.items():
        if chosen is None or name in chosen:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, _counterpart_of(layer, counterparts[type(layer)]))
    return network


def _counterpart_of(layer: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """Make a layer of class `cls` with all that `layer` has: the same parameters, geometry, hooks, own attributes."""
    made = cls.__new__(cls)
    vars(made).update(vars(layer))
    made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
    if type(layer) in _PLAIN_COUNTERPART:
        for held in (made._parameters, made._buffers, vars(made)):
            for name in (*SCORE_NAMES, "rule"):
                held.pop(name, None)
    if cls in _PLAIN_COUNTERPART:
        made.add_scores()
    return made


def _has_free_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias_is_free", False)
