"""Folds BatchNorm into the convolutions before it: the same network in evaluation, with fewer passes over memory.

In evaluation a BatchNorm computes γ · (x − μ) / √(σ² + ε) + β with constant μ and σ². A convolution before it does this
by itself with the weights w · γ / √(σ² + ε) and the bias β + (b − μ) · γ / √(σ² + ε). All evaluations of a run go
through such a copy; its logits are those of the network up to rounding.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized


class FoldedNetwork:
    """The folded copy of a plain network; `refreshed` updates it before each use.

    If the network's graph cannot be traced, or has hooks or tensors besides parameters and buffers, the network itself
    is used.

    Args:
        network: plain; its parameters and statistics may change later, but not its layers.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._pairs: list[tuple[str, str]] = []
        try:
            self._copy = fx.symbolic_trace(deepcopy(network).eval().requires_grad_(False))
        except Exception:  # a user's network may branch on its input
            self._copy = None
        # A hook changes what goes into or out of its layer, and tracing makes buffers of other tensors.
        if self._copy is None or _has_hooks(network) or _buffers(self._copy) - _buffers(network):
            self._copy = None
            return
        modules = dict(self._copy.named_modules())
        calls = [node.target for node in self._copy.graph.nodes if node.op == "call_module"]
        read_directly = [node.target for node in self._copy.graph.nodes if node.op == "get_attr"]
        for node in list(self._copy.graph.nodes):
            before = node.args[0] if node.args else None
            # A convolution whose output others read too would give them the folded values.
            if not (_is(node, modules, _BatchNorm) and _is(before, modules, nn.Conv2d) and len(before.users) == 1):
                continue
            conv, norm = modules[before.target], modules[node.target]
            if is_parametrized(conv) or is_parametrized(norm):
                continue  # each call computes their weights anew, as weight_norm does
            if norm.running_mean is None or calls.count(before.target) > 1 or calls.count(node.target) > 1:
                continue  # it has no running statistics, or a layer is called twice
            own = (f"{before.target}.", f"{node.target}.")
            if before.target in dict(self._pairs) or any(read.startswith(own) for read in read_directly):
                continue  # another norm is folded into it already, or its weights are used elsewhere too
            if conv.bias is None:
                conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
            node.replace_all_uses_with(before)
            self._copy.graph.erase_node(node)
            self._pairs.append((before.target, node.target))
        self._copy.recompile()

    @torch.no_grad()
    def refreshed(self) -> nn.Module:
        """Update the folded copy with the network's current parameters and statistics; return it in evaluation mode.

        Every call returns the same module: use it before the next call. Where the graph could not be traced, it is the
        network itself, which this leaves in evaluation mode.
        """
        if self._copy is None:
            return self._network.eval()
        folded = {name for pair in self._pairs for name in pair}
        own = dict(self._copy.named_modules())
        for name, module in self._network.named_modules():
            if name in own and name not in folded:
                for kind in ("_parameters", "_buffers"):
                    for key, held in getattr(own[name], kind).items():
                        if held is not None:
                            held.copy_(getattr(module, kind)[key])
        for conv_name, norm_name in self._pairs:
            conv, norm = self._network.get_submodule(conv_name), self._network.get_submodule(norm_name)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            own[conv_name].weight.copy_(weight)
            own[conv_name].bias.copy_(bias)
        return self._copy


def _buffers(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_buffers(remove_duplicate=False)}


def _has_hooks(network: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def _is(node: object, modules: dict[str, nn.Module], kind: type[nn.Module]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and isinstance(modules[node.target], kind)
