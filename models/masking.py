"""Masking as a transformation: any plain network becomes a masked one and back, names kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import DenseConv, DenseLinear, FullyConnected, MaskedFullyConnected, Rule, SubnetConv, SubnetLinear
from utils.errors import UserError
from utils.masks import Masks

# By exact type: a user's own subclass of a layer has a forward of its own, which a swap would lose.
_MASKED_COUNTERPART = {nn.Conv2d: SubnetConv, FullyConnected: MaskedFullyConnected, nn.Linear: SubnetLinear}
_PLAIN_COUNTERPART = {masked: plain for plain, masked in _MASKED_COUNTERPART.items()}
_DENSE_COUNTERPART = {nn.Conv2d: DenseConv, FullyConnected: DenseConv, nn.Linear: DenseLinear}
_PRUNABLE = frozenset({*_MASKED_COUNTERPART, *_PLAIN_COUNTERPART})
_SCORE_NAMES = ("scores", "flag", "bias_scores", "bias_flag")


def to_masked(network: nn.Module) -> nn.Module:
    """Swap every convolution and linear layer, but those that stay dense, for its masked counterpart, in place.

    Weights are the same tensors as before, scores and flags all ones. Returns the network.

    Raises:
        UserError: a layer is used under two names, or the network is nothing but one layer: neither can be swapped;
            or there is no layer to swap.
    """
    require_prunable(network)
    return _swap(network, _MASKED_COUNTERPART)


def to_plain(network: nn.Module) -> nn.Module:
    """Undo `to_masked`: plain layers with the (unmasked) weights; scores and flags are gone. Returns the network."""
    return _swap(network, _PLAIN_COUNTERPART)


def keep_dense(network: nn.Module, first: bool, last: bool) -> nn.Module:
    """Take the first layer or the last one, in network order, out of what is masked, pruned and counted, in place.

    Args:
        network: plain.
        first, last: which. Returns the network.

    Raises:
        UserError: a layer is used under two names, or the network is nothing but one layer.
    """
    names = [name for name, module in network.named_modules() if type(module) in _DENSE_COUNTERPART]
    chosen = (names[:1] if first else []) + (names[-1:] if last else [])
    return _swap(network, _DENSE_COUNTERPART, chosen) if chosen else network


def leave_biases(network: nn.Module) -> nn.Module:
    """Take the biases of all layers out of what is masked, pruned and counted, in place: a search leaves them alone.

    Args:
        network: plain. Returned.
    """
    for module in network.modules():
        if type(module) in _DENSE_COUNTERPART:
            module.bias_is_free = True  # an attribute of the layer: it outlives swaps and copies
    return network


def masked_layers(network: nn.Module) -> dict[str, SubnetConv | SubnetLinear]:
    """The masked layers by name, in network order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, (SubnetConv, SubnetLinear))}


def prunable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> weight or bias of every convolution and linear layer, plain or masked, in network order.

    Layers that stay dense are left out, and so are biases that are left unmasked.
    """
    return _parameters_of(network, _PRUNABLE, with_free_biases=False)


def layer_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The same, with those of the layers that stay dense and the biases that are left unmasked."""
    return _parameters_of(network, _PRUNABLE | {*_DENSE_COUNTERPART.values()})


def require_prunable(network: nn.Module) -> None:
    """Refuse a network in which nothing can be pruned.

    Raises:
        UserError: it has no layer that is exactly a Conv2d or Linear and does not stay dense.
    """
    if not prunable_parameters(network):
        raise UserError(
            "the network has nothing to mask: no layer of it is an nn.Conv2d or nn.Linear itself (a subclass of one is "
            "left alone) that does not stay dense (first_layer_dense, first_layer_type, last_layer_dense)"
        )


def set_rule(network: nn.Module, rule: Rule) -> None:
    """Give every masked layer the rule by which its scores become a mask."""
    for layer in masked_layers(network).values():
        layer.rule = rule


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state_dict of the plain counterpart of a masked network; no weight is multiplied by its mask."""
    own = {f"{layer}.{kind}" for layer in masked_layers(network) for kind in _SCORE_NAMES}
    return {name: value.detach().clone() for name, value in network.state_dict().items() if name not in own}


class FlatScores:
    """All scores of a masked network as one parameter, all flags as one buffer; the layers' own become views of them.

    One kernel then clamps, penalises, updates or ranks all of them. Weights come first, in network order, then
    biases. To be made last: moving, casting or copying the network afterwards would part the views from the whole.

    Attributes:
        scores: (N + N_bias,) parameter; its gradient is allocated here, and to be kept.
        flags: (N + N_bias,) bool.
        segments: the slices of the weights and, if there are any, of the biases.
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
        self._parts = [nn.Parameter(view) for view in self.split(self.scores.detach()).values()]
        for (_, layer, prefix), part, flag in zip(places, self._parts, self.split(self.flags).values()):
            setattr(layer, f"{prefix}scores", part)
            setattr(layer, f"{prefix}flag", flag)
        self.share_gradient()
        weights = sum(layer.weight.numel() for layer in layers.values())
        biases = slice(weights, self.scores.numel())
        self.segments = [slice(0, weights)] + ([biases] if biases.stop > weights else [])

    def share_gradient(self) -> None:
        """Make the gradients of the layers' scores views of the whole's, where that has become another tensor."""
        for part, gradient in zip(self._parts, self.split(self.scores.grad).values()):
            part.grad = gradient

    def split(self, whole: Tensor) -> Masks:
        """Views of a flat tensor (N + N_bias,) as parameter name -> tensor of the parameter's shape."""
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
    """Swap the layers of the types in `counterparts`, or only those of the chosen names."""
    places: dict[nn.Module, str] = {}
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
    """A layer of the class `cls` with the geometry, mode and very parameters of `layer`."""
    if isinstance(layer, nn.Linear):
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    else:
        made = cls(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups, bias=layer.bias is not None, padding_mode=layer.padding_mode, device="meta",
        )  # fmt: skip
    made.weight, made.bias, made.bias_is_free = layer.weight, layer.bias, _has_free_bias(layer)
    made.train(layer.training)
    for kind in ("", "bias_") if hasattr(made, "scores") else ():
        parameter = made.weight if not kind else None if made.bias_is_free else made.bias
        setattr(made, f"{kind}scores", None if parameter is None else nn.Parameter(torch.ones_like(parameter)))
        setattr(made, f"{kind}flag", None if parameter is None else torch.ones_like(parameter, dtype=torch.bool))
    return made


def _has_free_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias_is_free", False)
