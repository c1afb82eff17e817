"""State_dicts from files: what is read, what is refused and how that is said."""

import io
import pickle
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_bits
from safetensors.torch import save_file
from torch import Tensor, nn
from toys import complaint
from untrusted_inputs import Evil

from args_helper import parse_args
from models.build import build_model
from models.masking import FlatScores, masked_layers, plain_state, to_masked
from models.state_files import as_safetensors, load_scores, load_weights, read_state


def small_network(seed: int = 0, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(8, classes)
    return nn.Sequential(*layers)


def masked_network(seed: int = 0, classes: int = 3) -> nn.Sequential:
    """Masked, with scores drawn, some flags off and running statistics that moved."""
    network = to_masked(small_network(seed, classes))
    network(torch.randn(4, 1, 4, 4))
    for layer in masked_layers(network).values():
        layer.scores.data.copy_(torch.rand(layer.scores.shape))
        layer.flag.copy_(torch.rand(layer.flag.shape) < 0.7)
    network[3].bias_scores.data.copy_(torch.rand(classes))
    network[3].bias_flag.copy_(torch.arange(classes) != 1)
    return network


def published(network: nn.Module, prefix: str = "module.") -> dict[str, Any]:
    """A checkpoint as the published code writes one: float flags, and a score even for a bias that there is not."""
    state = {name: value.float() if "flag" in name else value for name, value in network.state_dict().items()}
    state |= {"0.bias_scores": torch.ones(1), "0.bias_flag": torch.ones(1)}
    state = {f"{prefix}{name}": value for name, value in state.items()}
    return {"epoch": 5, "arch": "resnet20", "state_dict": state, "best_acc1": 91.2, "optimizer": {"state": {}}}


def saved(content: Any, folder: Path, old: bool = False) -> Path:
    torch.save(content, folder / "net.pt", _use_new_zipfile_serialization=not old)
    return folder / "net.pt"


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [
    lambda state: state, lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {"epoch": 3, "rows": [], "training": {"network": state, "optimizer": {"state": {}}}},
], ids=["bare", "state_dict", "DataParallel", "our checkpoint"])  # fmt: skip
def test_a_state_is_found_in_every_form_of_file(wrapped, tmp_path):
    state = plain_state(masked_network())
    assert same_bits(read_state(saved(wrapped(state), tmp_path)), state)
    save_file(state, tmp_path / "net.safetensors")
    assert same_bits(read_state(tmp_path / "net.safetensors"), state)


@pytest.mark.parametrize("old", [False, True], ids=["of today", "of an old PyTorch"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_gives_weights_batch_norm_scores_and_flags(prefix, old, tmp_path):
    network, other = masked_network(0), small_network(1)
    state = read_state(saved(published(network, prefix), tmp_path, old))
    assert state.keys() == network.state_dict().keys()
    load_weights(other, state, "net.pt")
    assert same_bits(other.state_dict(), plain_state(network))
    assert load_scores(to_masked(other), state, "net.pt") is True
    assert same_bits(other.state_dict(), network.state_dict())
    assert other[0].flag.dtype == other[3].bias_flag.dtype == torch.bool


def test_a_prefix_that_only_some_names_have_belongs_to_the_names(tmp_path):
    state = {"module.weight": torch.ones(2), "other.weight": torch.ones(2)}
    assert list(read_state(saved(state, tmp_path))) == ["module.weight", "other.weight"]


def test_loading_scores_leaves_the_weights_and_keeps_flat_views():
    network, other = masked_network(0), masked_network(1)
    flat, weights = FlatScores(network), plain_state(network)
    load_scores(network, other.state_dict(), "net.pt")
    wanted = FlatScores(other)
    assert same_bits(plain_state(network), weights)
    assert same_bits([flat.scores.data, flat.flags], [wanted.scores.data, wanted.flags])


def test_a_model_that_is_built_with_pretrained_has_the_weights_of_the_file(tmp_path):
    words = ["--arch", "Conv2", "--width", "0.1", "--dataset", "Digits"]
    first, other = (build_model(parse_args([*words, "--seed", seed])).state_dict() for seed in "12")
    path = saved(first, tmp_path)
    assert not same_bits(other, first)
    assert same_bits(build_model(parse_args([*words, "--seed", "2", "--pretrained", str(path)])).state_dict(), first)
    other = parse_args([*words, "--hidden_size", "7", "--arch", "FC", "--pretrained", str(path)])
    assert "net.pt does not fit the network" in complaint(build_model, other)


# ---- another number of classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_a_last_layer_of_another_number_of_classes_stays_as_drawn_with_one_warning(classes):
    network, state = small_network(0), masked_network(1, classes).state_dict()
    drawn = deepcopy(network.state_dict())
    with pytest.warns(UserWarning) as caught:
        load_weights(network, state, "some.pt")
    assert [str(one.message) for one in caught] == [
        "some.pt is of another number of classes: the last layer stays as it was drawn, all else is taken over"
    ]
    assert same_bits(network.state_dict(), {name: (drawn if name[0] == "3" else state)[name] for name in drawn})
    assert not torch.equal(network[0].weight, drawn["0.weight"])


def test_scores_of_a_last_layer_of_another_number_of_classes_stay_as_well_and_are_not_warned_of_again():
    network, state = masked_network(0), masked_network(1, classes=5).state_dict()
    before = deepcopy(network.state_dict())
    with warnings.catch_warnings(action="error"):
        assert load_scores(network, state, "some.pt") is True
    assert same_bits(network.state_dict(), {**before, "0.scores": state["0.scores"], "0.flag": state["0.flag"]})


# ---- what does not fit ---------------------------------------------------------------------------------------------


def refused(load: Any, network: nn.Module, state: dict[str, Tensor]) -> str:
    """What is said of a state; the network has to stay as it was."""
    before = deepcopy(network.state_dict())
    said = complaint(load, network, state, "some.pt")
    assert same_bits(network.state_dict(), before)
    return said


@pytest.mark.parametrize(("load", "classes", "name", "shape", "says"), [
    (load_weights, 3, "3.weight", None, "3.weight is missing"),
    (load_weights, 3, "7.weight", (2,), "7.weight is not of this network"),
    (load_weights, 3, "3.weight", (8, 3), "3.weight has shape (8, 3) where (3, 8) is needed"),
    (load_weights, 3, "3.bias", (1,), "3.bias has shape (1,) where (3,) is needed"),
    (load_weights, 3, "1.running_var", None, "1.running_var is missing"),
    (load_weights, 5, "3.bias", (4,), "{}; 3.bias has shape (4,) where (3,) is needed"),
    (load_weights, 5, "3.bias", None, "3.bias is missing; {}"),
    (load_weights, 5, "3.weight", (5, 7), "3.weight has shape (5, 7) where (3, 8) is needed; 3.bias has shape (5,) "
     "where (3,) is needed"),
    (load_weights, 5, "0.weight", (9, 1, 3, 3), "0.weight has shape (9, 1, 3, 3) where (2, 1, 3, 3) is needed; {}; "
     "3.bias has shape (5,) where (3,) is needed"),
    (load_scores, 3, "3.flag", None, "3.flag is missing"),
    (load_scores, 3, "0.scores", (2, 1, 5, 5), "0.scores has shape (2, 1, 5, 5) where (2, 1, 3, 3) is needed"),
    (load_scores, 3, "9.scores", (1,), "9.scores is not of this network"),
])  # fmt: skip
def test_what_does_not_fit_is_named_and_the_network_is_left_as_it_was(load, classes, name, shape, says):
    state = {**masked_network(1, classes).state_dict(), name: torch.ones(shape or ())}
    if shape is None:
        del state[name]
    says = says.format("3.weight has shape (5, 8) where (3, 8) is needed")
    network = small_network() if load is load_weights else masked_network()
    assert refused(load, network, state) == f"some.pt does not fit the network: {says}"


def test_all_that_does_not_fit_is_said_at_once_up_to_six_names():
    own = [f"{name} is missing" for name in small_network().state_dict()]
    said = refused(load_weights, small_network(), {f"extra{number}": torch.ones(1) for number in range(4)})
    assert len(own) == 6 and said == f"some.pt does not fit the network: {'; '.join(own)} and 4 more"


def test_a_parameter_that_is_called_scores_is_no_score():
    network = small_network()
    network.scores = nn.Parameter(torch.ones(2))
    own = plain_state(network)
    load_weights(network, own, "a file")
    assert not load_scores(to_masked(network), own, "a file")


def test_a_tensor_under_two_names_is_stored_under_both(tmp_path):
    network = nn.Sequential(nn.BatchNorm1d(2))
    network.other_name = network[0]
    (tmp_path / "model.safetensors").write_bytes(as_safetensors(network))
    assert same_bits(read_state(tmp_path / "model.safetensors"), dict(network.state_dict()))


def test_weights_fit_whatever_the_scores_beside_them_look_like():
    state = {**masked_network(1).state_dict(), "0.scores": torch.ones(7), "9.flag": torch.ones(1)}
    load_weights(network := small_network(), state, "some.pt")
    assert same_bits(network.state_dict(), plain_state(masked_network(1)))


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "beside a state_dict"])
def test_a_file_that_would_run_code_is_refused_without_running_it_or_advice_to(form, tmp_path):
    evidence = tmp_path / "code_ran"
    payload = Evil(Path.touch, evidence)
    state = {"a.weight": torch.ones(1), "payload": payload}
    beside = {"state_dict": {"a.weight": torch.ones(1)}, "args": state}
    path = saved(beside if "beside" in form else state, tmp_path, form == "old torch")
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    said = complaint(read_state, path)
    assert f"cannot read a state_dict from {path}" in said
    assert not any(word in said for word in ("weights_only", "can still be loaded", "\x1b"))
    assert not evidence.exists()
    pickle.loads(pickle.dumps(payload))
    assert evidence.exists()  # so the payload works where it is let


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(2), {}, {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_a_state_is_refused(content, tmp_path):
    said = complaint(read_state, saved(content, tmp_path))
    assert "net.pt holds no state_dict: a mapping of names to tensors is expected" in said


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere.safetensors", "."])
def test_a_file_that_is_not_there_is_said_to_be_missing(name, tmp_path):
    assert f"there is no file {tmp_path / name}" in complaint(read_state, tmp_path / name)


def cut_off(old: bool) -> list[bytes]:
    torch.save(published(masked_network()), whole := io.BytesIO(), _use_new_zipfile_serialization=not old)
    return [whole.getvalue()[: len(whole.getvalue()) * part // 40] for part in range(40)]


OTHERS = [b"", b"lr: 0.1\n", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(range(256))]


@pytest.mark.parametrize(("name", "contents"), [
    ("net.safetensors", OTHERS), ("net.pt", OTHERS), ("net.pt", cut_off(old=False)), ("net.pt", cut_off(old=True)),
], ids=["safetensors", "torch", "cut off", "old and cut off"])  # fmt: skip
def test_a_file_that_is_empty_of_another_kind_or_cut_off_is_refused(name, contents, tmp_path):
    for content in contents:
        (tmp_path / name).write_bytes(content)
        assert "cannot read a state_dict from" in complaint(read_state, tmp_path / name)
