"""What is computed in float64 is computed on the CPU where a device (MPS) has no float64."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from args_helper import parse_args
from data.load import load_data
from models.build import build_model
from models.masking import prunable_parameters
from trainers.algorithms.synflow import find_ticket
from trainers.checks.connectivity import connectivity
from utils.masks import random_masks
from utils.run.run import Run


class OnMPS(Tensor):
    """A tensor on the CPU that says it is on MPS, as do those that are computed from it."""

    device = torch.device("mps")

    def __deepcopy__(self, memo: dict) -> Tensor:
        return nn.Parameter(self.detach().clone(), self.requires_grad)


class LikeMPS(TorchFunctionMode):
    """Within: `.to("mps")` gives such a tensor and `.to("cpu")` takes it back, and it is refused what MPS refuses."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kinds, kwargs = {"mps": OnMPS, "cpu": Tensor}, kwargs or {}
        if getattr(function, "__name__", "") == "to" and (kind := kinds.get(str(args[1]))):
            return args[0].as_subclass(kind)
        made_there = str(kwargs.get("device")) == "mps"
        result = function(*args, **(kwargs | {"device": "cpu"} if made_there else kwargs))
        result = result.as_subclass(OnMPS) if made_there else result
        if isinstance(result, OnMPS) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        computes = function not in (torch._has_compatible_shallow_copy_type, Tensor.copy_)  # modules ask, to be moved
        if computes and len({isinstance(one, OnMPS) for one in args if isinstance(one, Tensor) and one.ndim}) > 1:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")
        return result


@pytest.fixture
def like_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A module that is moved gets new parameters: the type of the old ones is what tells the device here.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    with LikeMPS():
        yield


def test_the_stand_in_refuses_what_mps_refuses(like_mps: None) -> None:
    net = nn.Linear(2, 2).to("mps")
    with pytest.raises(TypeError, match="doesn't support float64"):
        net.double()
    with pytest.raises(RuntimeError, match="same device"):
        net.weight * torch.ones(2, 2)


def test_connectivity_is_that_on_the_cpu(like_mps: None) -> None:
    net = build_model(parse_args([*SMALL, "--device", "cpu"]))
    counts = {name: weight.numel() // 10 for name, weight in prunable_parameters(net).items()}
    masks = random_masks(prunable_parameters(net), counts, torch.Generator().manual_seed(0))
    wanted = connectivity(net, masks, (1, 8, 8))
    assert connectivity(net.to("mps"), {name: mask.to("mps") for name, mask in masks.items()}, (1, 8, 8)) == wanted
    assert 0 < wanted["effective_weights_remaining"] < sum(counts.values())


def test_synflow_finds_the_same_ticket_and_returns_it_on_the_device(like_mps: None, tmp_path: Path) -> None:
    config = parse_args([*SMALL, "--device", "cpu", "--algo", "synflow"])
    data, run = load_data(config), Run(tmp_path / "run", tmp_path / "logs", 1)
    wanted, found = (find_ticket(build_model(config).to(device), data, config, run) for device in ("cpu", "mps"))
    assert {type(part) for part in (*found.masks.values(), *found.state.values())} == {OnMPS}
    assert found.masks.keys() == wanted.masks.keys()
    assert all(torch.equal(mask.to("cpu"), wanted.masks[name]) for name, mask in found.masks.items())
