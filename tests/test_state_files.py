"""State_dicts from files: what is read, what is refused and how that is said."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from args_helper import parse_args
from models.build import build_model
from models.masking import FlatScores, masked_layers, plain_state, to_masked
from models.state_files import load_scores, load_weights, read_state
from utils.errors import UserError


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(8, 3))


def masked_network(seed: int = 0) -> nn.Sequential:
    """Masked, with scores drawn, some flags off and running statistics that moved."""
    network = to_masked(small_network(seed))
    network(torch.randn(4, 1, 4, 4))
    for layer in masked_layers(network).values():
        layer.scores.data.copy_(torch.rand(layer.scores.shape))
        layer.flag.copy_(torch.rand(layer.flag.shape) < 0.7)
    network[3].bias_scores.data.copy_(torch.rand(3))
    network[3].bias_flag.copy_(torch.tensor([True, False, True]))
    return network


def published(network: nn.Module, prefix: str = "module.") -> dict[str, Any]:
    """A checkpoint as the published code writes one: float flags, and a score even for a bias that there is not."""
    state = {name: value.float() if "flag" in name else value for name, value in network.state_dict().items()}
    for name, layer in masked_layers(network).items():
        if layer.bias is None:
            state |= {f"{name}.bias_scores": torch.ones(1), f"{name}.bias_flag": torch.ones(1)}
    state = {f"{prefix}{name}": value for name, value in state.items()}
    return {"epoch": 5, "arch": "resnet20", "state_dict": state, "best_acc1": 91.2, "optimizer": {"state": {}}}


def saved(content: Any, folder: Path, name: str = "net.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- what is read --------------------------------------------------------------------------------------------------


def plain_safetensors(network: nn.Module, folder: Path) -> Path:
    save_file(plain_state(network), folder / "net.safetensors")
    return folder / "net.safetensors"


FORMS: dict[str, Callable[[nn.Module, Path], Path]] = {
    "bare": lambda network, folder: saved(plain_state(network), folder),
    "state_dict": lambda network, folder: saved({"state_dict": plain_state(network), "epoch": 3}, folder),
    "DataParallel": lambda network, folder: saved(
        {f"module.{name}": value for name, value in plain_state(network).items()}, folder
    ),
    "our checkpoint": lambda network, folder: saved(
        {"epoch": 3, "rows": [], "training": {"network": plain_state(network), "optimizer": {"state": {}}}}, folder
    ),
    "safetensors": plain_safetensors,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_found_in_every_form_of_file(form, tmp_path):
    network = masked_network()
    assert same(read_state(FORMS[form](network, tmp_path)), plain_state(network))


def test_a_file_of_an_old_pytorch_is_read(tmp_path):
    network = masked_network()
    torch.save(published(network), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    load_weights(other := small_network(1), read_state(tmp_path / "net.pt"), "net.pt")
    assert same(other.state_dict(), plain_state(network))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_gives_weights_batch_norm_scores_and_flags(prefix, tmp_path):
    network = masked_network(0)
    state = read_state(saved(published(network, prefix), tmp_path))
    assert state.keys() == network.state_dict().keys()

    other = small_network(1)
    load_weights(other, state, "net.pt")
    assert same(other.state_dict(), plain_state(network))

    to_masked(other)
    assert load_scores(other, state, "net.pt") is True
    assert same(other.state_dict(), network.state_dict())
    assert other[0].flag.dtype == other[3].bias_flag.dtype == torch.bool


def test_a_score_of_a_bias_that_there_is_stays(tmp_path):
    state = read_state(saved(published(masked_network()), tmp_path))
    assert "3.bias_scores" in state
    assert "0.bias_scores" not in state
    assert "0.bias_flag" not in state


def test_a_prefix_that_only_some_names_have_belongs_to_the_names(tmp_path):
    state = {"module.weight": torch.ones(2), "other.weight": torch.ones(2)}
    assert list(read_state(saved(state, tmp_path))) == ["module.weight", "other.weight"]


def test_a_state_without_scores_leaves_those_of_the_network_as_they_were():
    network = masked_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert load_scores(network, plain_state(masked_network(1)), "net.pt") is False
    assert same(network.state_dict(), before)


def test_loading_scores_leaves_the_weights_and_keeps_flat_views():
    network, other = masked_network(0), masked_network(1)
    flat, weights = FlatScores(network), plain_state(network)
    load_scores(network, other.state_dict(), "net.pt")
    assert same(plain_state(network), weights)
    wanted = FlatScores(other)
    assert torch.equal(flat.scores, wanted.scores)
    assert torch.equal(flat.flags, wanted.flags)


def test_a_model_that_is_built_with_pretrained_has_the_weights_of_the_file(tmp_path):
    words = ["--arch", "Conv2", "--width", "0.1", "--dataset", "Digits"]
    first = build_model(parse_args([*words, "--seed", "1"]))
    path = saved(first.state_dict(), tmp_path)
    assert not same(build_model(parse_args([*words, "--seed", "2"])).state_dict(), first.state_dict())
    second = build_model(parse_args([*words, "--seed", "2", "--pretrained", str(path)]))
    assert same(second.state_dict(), first.state_dict())
    with pytest.raises(UserError, match=r"net\.pt does not fit the network"):
        build_model(parse_args([*words, "--hidden_size", "7", "--arch", "FC", "--pretrained", str(path)]))


# ---- another number of classes -------------------------------------------------------------------------------------


def of_classes(classes: int, seed: int = 1) -> nn.Sequential:
    network = masked_network(seed)
    torch.manual_seed(seed)
    network[3] = to_masked(nn.Sequential(nn.Linear(8, classes)))[0]
    return network


@pytest.mark.parametrize("classes", [2, 5])
def test_a_last_layer_of_another_number_of_classes_stays_as_drawn_with_one_warning(classes):
    network, state = small_network(0), of_classes(classes).state_dict()
    drawn = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.warns(UserWarning) as caught:
        load_weights(network, state, "some.pt")
    assert [str(one.message) for one in caught] == [
        "some.pt is of another number of classes: the last layer stays as it was drawn, all else is taken over"
    ]
    for name, value in network.state_dict().items():
        assert torch.equal(value, (drawn if name.startswith("3.") else state)[name])
    assert not torch.equal(network[0].weight, drawn["0.weight"])


def test_scores_of_a_last_layer_of_another_number_of_classes_stay_as_well_and_are_not_warned_of_again():
    network, state = masked_network(0), of_classes(5).state_dict()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_scores(network, state, "some.pt") is True
    after = network.state_dict()
    assert torch.equal(after["0.scores"], state["0.scores"]) and torch.equal(after["0.flag"], state["0.flag"])
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("3."))
    assert torch.equal(after["0.weight"], before["0.weight"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: {**state, "3.bias": torch.ones(4)}, r"3.weight has shape \(5, 8\) .*; 3.bias has shape \(4,\)"),
        (lambda state: without(state, "3.bias"), r"3.bias is missing; 3.weight has shape \(5, 8\) where \(3, 8\)"),
        (lambda state: {**state, "3.weight": torch.ones(5, 7)}, r"3.weight has shape \(5, 7\) where \(3, 8\)"),
        (lambda state: {**state, "0.weight": torch.ones(9, 1, 3, 3)}, r"0.weight has shape .*; 3.weight has shape \(5"),
    ],
    ids=["weight and bias differ", "no bias", "other features", "another layer too"],
)
def test_what_differs_in_more_than_the_number_of_classes_is_refused(spoil, message):
    network, state = small_network(0), plain_state(of_classes(5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=f"^some.pt does not fit the network: {message}"):
        load_weights(network, spoil(state), "some.pt")
    assert same(network.state_dict(), before)


# ---- what does not fit ---------------------------------------------------------------------------------------------


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: value for other, value in state.items() if other != name}


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda state: without(state, "3.weight"), "3.weight is missing"),
    "unknown": (lambda state: {**state, "7.weight": torch.ones(2)}, "7.weight is not of this network"),
    "misshapen": (
        lambda state: {**state, "3.weight": torch.ones(8, 3)},
        r"3.weight has shape \(8, 3\) where \(3, 8\) is needed",
    ),
    "one number for many": (
        lambda state: {**state, "3.bias": torch.ones(1)},
        r"3.bias has shape \(1,\) where \(3,\) is needed",
    ),
    "missing batch norm": (lambda state: without(state, "1.running_var"), "1.running_var is missing"),
}


@pytest.mark.parametrize(("spoil", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_weights_that_do_not_fit_are_named_and_the_network_is_left_as_it_was(spoil, message):
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=f"^some.pt does not fit the network: {message}$"):
        load_weights(network, spoil(small_network(1).state_dict()), "some.pt")
    assert same(network.state_dict(), before)


def test_all_that_does_not_fit_is_said_at_once_up_to_six_names():
    wrong = {f"extra{number}": torch.ones(1) for number in range(4)}
    with pytest.raises(UserError) as error:
        load_weights(small_network(), wrong, "some.pt")
    own = [f"{name} is missing" for name in small_network().state_dict()]
    assert len(own) == 6
    assert str(error.value) == f"some.pt does not fit the network: {'; '.join(own)} and 4 more"


def test_scores_that_do_not_fit_are_named_and_the_network_is_left_as_it_was():
    network = masked_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = masked_network(1).state_dict()
    for spoiled, message in (
        (without(state, "3.flag"), "3.flag is missing"),
        ({**state, "0.scores": torch.ones(2, 1, 5, 5)}, "0.scores has shape"),
        ({**state, "9.scores": torch.ones(1)}, "9.scores is not of this network"),
    ):
        with pytest.raises(UserError, match=f"^some.pt does not fit the network: {message}"):
            load_scores(network, spoiled, "some.pt")
        assert same(network.state_dict(), before)


def test_weights_fit_whatever_the_scores_beside_them_look_like():
    state = {**masked_network(1).state_dict(), "0.scores": torch.ones(7), "9.flag": torch.ones(1)}
    load_weights(network := small_network(), state, "some.pt")
    assert same(network.state_dict(), plain_state(masked_network(1)))


# ---- what is refused -----------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a file: the harmless kin of what a stranger's checkpoint might do."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.evidence,))


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "beside a state_dict"])
def test_a_file_that_would_run_code_is_refused_without_running_it(form, tmp_path):
    path, evidence = tmp_path / "net.pt", tmp_path / "code_ran"
    content: Any = {"a.weight": torch.ones(1), "payload": Payload(evidence)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["payload"], protocol=2))
    elif form == "beside a state_dict":
        saved({"state_dict": {"a.weight": torch.ones(1)}, "args": Payload(evidence)}, tmp_path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UserError, match=r"cannot read a state_dict from .*net\.pt"):
        read_state(path)
    assert not evidence.exists()
    pickle.loads(pickle.dumps(Payload(evidence)))
    assert evidence.exists()  # so the payload works where it is let


def test_the_message_on_a_file_that_would_run_code_gives_no_advice_to_run_it(tmp_path):
    with pytest.raises(UserError) as error:
        read_state(saved({"args": Payload(tmp_path / "code_ran")}, tmp_path))
    assert "weights_only" not in str(error.value)
    assert "can still be loaded" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(2), {}, {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_a_state_is_refused(content, tmp_path):
    with pytest.raises(UserError, match=r"net\.pt holds no state_dict: a mapping of names to tensors is expected"):
        read_state(saved(content, tmp_path))


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere.safetensors", "."])
def test_a_file_that_is_not_there_is_said_to_be_missing(name, tmp_path):
    with pytest.raises(UserError, match=r"there is no file .* \(pretrained\)"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("content", [b"lr: 0.1\n", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(range(256))])
def test_a_file_of_another_kind_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot read a state_dict from"):
        read_state(tmp_path / name)


def test_an_empty_safetensors_file_is_refused(tmp_path):
    (tmp_path / "net.safetensors").touch()
    with pytest.raises(UserError, match="cannot read a state_dict from"):
        read_state(tmp_path / "net.safetensors")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "net.pt").touch()
    with pytest.raises(UserError, match="cannot read a state_dict from"):
        read_state(tmp_path / "net.pt")


def truncations(old: bool) -> list[bytes]:
    whole = io.BytesIO()
    torch.save(published(masked_network()), whole, _use_new_zipfile_serialization=not old)
    raw = whole.getvalue()
    return [raw[: len(raw) * part // 40] for part in range(1, 40)]


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    for content in truncations(old=False):
        (tmp_path / "net.pt").write_bytes(content)
        with pytest.raises(UserError, match="cannot read a state_dict from"):
            read_state(tmp_path / "net.pt")


def test_a_file_of_an_old_pytorch_that_was_cut_off_is_refused(tmp_path):
    for content in truncations(old=True):
        (tmp_path / "net.pt").write_bytes(content)
        with pytest.raises(UserError, match="cannot read a state_dict from"):
            read_state(tmp_path / "net.pt")
