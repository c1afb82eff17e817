"""Every way to find a ticket: exact counts, hand-computed scores, golden figures, and nothing left changed behind."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, Outcome
from torch import Tensor, nn

from args_helper import parse_args
from data.load import load_data
from models.build import build_model
from models.initialise import draw_scores
from models.masking import masked_layers, to_masked
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.edge_popup import EdgePopup
from trainers.algorithms.grasp import gradient_flow
from trainers.algorithms.load import load_algorithm
from trainers.algorithms.random_mask import allocate
from trainers.algorithms.smart_ratio import layer_counts
from trainers.algorithms.synflow import synaptic_flow
from trainers.checks.controls import CHECKS
from trainers.training.loop import train_step
from trainers.training.training import Training
from utils.errors import UserError
from utils.masks import per_layer, remaining, total
from utils.run.run import Run

GOLDEN = Path(__file__).parent / "golden"
GLOBAL = ("magnitude", "snip", "grasp", "synflow", "random", "random_erk")
AT_INIT = (*GLOBAL, "smart_ratio")


def _golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _ticket(tmp_path: Path, *words: str) -> tuple:
    """(ticket, network, config) of an algorithm on a small network, found as a run finds it."""
    config = parse_args([*SMALL, "--device", "cpu", "--target_sparsity", "5", *words])
    network = build_model(config)
    run = Run(tmp_path / "run", tmp_path / "logs", config.effective_seed)
    return load_algorithm(config.algo)(network, load_data(config), config, run), network, config


# ---- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_goes_from_search_to_report(
    algo: str, call: Callable[..., Outcome], places: list[str], tmp_path: Path
) -> None:
    options = ["--algo", algo, "--epochs", 3, "--fine_tune_epochs", 1]
    if algo == "given":
        assert call(*SMALL, *options[2:], *places, "--name", "first", "--algo", "random", "--skip_fine_tune").code == 0
        options += ["--ticket", tmp_path / "results" / "first" / "trial_1" / "ticket.safetensors"]
    outcome = call(*SMALL, *options, *places)
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "results" / "trial_1" / "summary.json").read_text())
    assert summary["algo"] == algo
    assert 0 < summary["weights_remaining"] <= summary["weights_total"]
    dense = summary["weights_remaining"] == summary["weights_total"]
    assert set(summary["checks"]) == (set() if dense else set(CHECKS))
    assert 0 < summary["effective_weights_remaining"] <= summary["weights_remaining"]
    assert 0 <= summary["test_acc_after_finetune"] <= 100  # how good it is after so short a training is chance


@pytest.mark.parametrize(
    ("words", "trainings"),
    [
        ("hc", 2),
        ("hc_iter", 2),
        ("hc_iter --freeze_weights false", 2),
        ("hc_iter --optimizer adam --fine_tune_optimizer adam --bias", 2),
        ("ep", 2),
        ("global_ep", 2),
        ("global_ep_iter", 2),
        ("cts --rewind_epoch 2", 3),
        ("imp --imp_rounds 2 --iter_period 3", 2),
        ("training", 1),
        ("snip", 1),
    ],
)
def test_gradients_are_there_before_the_first_step_and_stay_where_they_are(
    words: str, trainings: int, call: Callable[..., Outcome], places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every training: what a CUDA graph of the first backward pass allocates, the next replay overwrites."""
    seen: list[tuple[Training, list[int]]] = []

    def addresses(training: Training) -> list[int]:
        learned = [one for group in training.optimizer.param_groups for one in group["params"]]
        assert sum(tensor.numel() for tensor in training.gradients) == sum(one.numel() for one in learned)
        return [one.grad.data_ptr() for one in (*learned, *training.network.parameters()) if one.requires_grad]

    def step(training: Training, *batch: Any) -> Tensor:
        seen.append((training, addresses(training)))
        counts = train_step(training, *batch)
        assert addresses(training) == next(before for one, before in seen if one is training)
        return counts

    monkeypatch.setattr("trainers.training.loop.train_step", step)
    options = ["--epochs", 3, "--fine_tune_epochs", 4, "--skip_sanity_checks", "--algo", *words.split()]
    outcome = call(*SMALL, "--device", "cpu", *options, *places)
    assert outcome.code == 0, outcome.err
    steps = Counter(id(training) for training, _ in seen)
    assert len(steps) == trainings
    assert min(steps.values()) >= 10


@pytest.mark.parametrize("algo", GLOBAL)
@pytest.mark.parametrize("bias", [False, True])
def test_global_methods_keep_exactly_the_target_rounded_down(algo: str, bias: bool, tmp_path: Path) -> None:
    ticket, _, config = _ticket(tmp_path, "--algo", algo, f"--bias={bias}")
    assert remaining(ticket.masks) == math.floor(config.density * total(ticket.masks))


@pytest.mark.parametrize("algo", AT_INIT)
def test_scoring_leaves_network_and_random_streams_as_they_were(algo: str, tmp_path: Path) -> None:
    config = parse_args([*SMALL, "--device", "cpu", "--target_sparsity", "5", "--algo", algo])
    network, data = build_model(config), load_data(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    ticket = load_algorithm(config.algo)(network, data, config, Run(tmp_path / "run", tmp_path / "logs", 42))
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in before.items():
        assert torch.equal(network.state_dict()[name], value)
        assert torch.equal(ticket.state[name], value)


@pytest.mark.parametrize("algo", [*AT_INIT, "ep", "global_ep"])
def test_the_same_seed_finds_the_same_ticket_and_another_seed_another(algo: str, tmp_path: Path) -> None:
    words = ("--algo", algo, "--epochs", "1")
    one, again, other = (
        _ticket(tmp_path / name, *words, "--seed", seed)[0].masks for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# ---- edge-popup ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["resnet20_edge_popup_seed13", "resnet20_global_edge_popup_seed13"])
def test_edge_popup_has_the_published_loss_and_count(case: str) -> None:
    golden = _golden(case)
    words = ["--algo", golden["case"]["cfg"]["algo"], "--prune_rate", str(golden["case"]["prune_rate"])]
    config = parse_args([*words, "--dataset", "CIFAR10", "--wd", "0"])
    network = to_masked(build_model(config))
    layers = masked_layers(network)
    rng = np.random.default_rng(golden["case"]["seed"])
    for name, shape in golden["prunable"]:
        drawn = rng.standard_normal(shape).astype("float32")
        scale = math.sqrt(2 / math.prod(shape[1:]))
        layers[name].weight.data = torch.from_numpy(np.sign(drawn) * np.float32(scale))
        rng.random(shape)
    rng = np.random.default_rng(7)
    for name, shape in golden["prunable"]:
        layers[name].scores.data = torch.from_numpy(rng.standard_normal(shape).astype("float32"))
    rng = np.random.default_rng(9)
    images = torch.from_numpy(rng.standard_normal((8, 3, 32, 32)).astype("float32"))
    labels = torch.from_numpy(rng.integers(0, 10, 8))
    search = EdgePopup(network, config)
    share = 100 * search._share(search.naive_mask())
    loss = train_step(search, 0, images, labels)[0] / 8
    assert float(loss) == pytest.approx(golden["ep"]["loss"], rel=1e-4)
    assert share == pytest.approx(golden["ep"]["sparsity"], abs=1e-9)


def test_a_score_learns_by_its_sign_whether_it_is_on_or_off() -> None:
    config = parse_args(["--algo", "ep", "--target_sparsity", "50", "--lr", "1", "--wd", "0", "--momentum", "0"])
    network = to_masked(nn.Sequential(nn.Linear(2, 1, bias=False)))
    network[0].weight.data = torch.tensor([[3.0, 5.0]])
    network[0].scores.data = torch.tensor([[-0.2, 0.1]])
    search = EdgePopup(network, config)
    assert search.naive_mask().tolist() == [True, False]
    network(torch.tensor([[1.0, 1.0]])).sum().backward()
    assert network[0].scores.grad.tolist() == [[-3.0, 5.0]]


@pytest.mark.parametrize("algo", ["global_ep", "global_ep_iter"])
def test_biases_are_ranked_among_themselves_and_have_their_own_count(algo: str) -> None:
    words = ["--algo", algo, "--bias", "--arch", "Conv2", "--width", "0.1", "--target_sparsity", "30"]
    config = parse_args([*words, "--iter_period", "2", "--lr", "0.1", "--dataset", "Digits"])
    network = to_masked(build_model(config))
    draw_scores(network, torch.Generator().manual_seed(0), "signed")
    search = EdgePopup(network, config)
    for epoch in (0, 5, config.epochs):
        search.before_epoch(epoch)
        pruned = search.pruned_fraction(epoch)
        for segment in search.flat.segments:  # the scores of biases are far greater than those of weights
            scores, mask = search.flat.scores[segment].abs(), search.naive_mask()[segment]
            assert int(mask.sum()) == len(mask) - math.ceil(pruned * len(mask) - 1e-9)
            assert scores[mask].min() > scores[~mask].max()
    layer = masked_layers(network)["convs.0"]
    layer.bias.data.fill_(1.0)
    assert torch.equal(layer.effective_bias() == 1, search.flat.split(search.naive_mask())["convs.0.bias"])


def test_a_begun_search_goes_on_with_the_count_of_its_biases() -> None:
    config = parse_args("--algo global_ep_iter --epochs 10 --iter_period 2 --bias --target_sparsity 5".split())
    one, other = (EdgePopup(to_masked(build_model(config)), config) for _ in range(2))
    one.flat.scores.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    one.before_epoch(9)
    other.load_state(one.state())
    assert torch.equal(other.naive_mask(), one.naive_mask())


@pytest.mark.parametrize(
    ("words", "density"),
    [
        ("--algo ep --target_sparsity 20", 0.2),
        ("--algo ep --prune_rate 0.3", 0.3),
        ("--algo ep --prune_rate 0.3 --target_sparsity 20", 0.2),
        ("--algo ep --prune_rate 0.3 --target_sparsity 20 --override_prune_rate", 0.3),
        ("--algo global_ep --prune_rate 0.3", 0.7),
        ("--algo global_ep --target_sparsity 20", 0.2),
    ],
)
def test_the_fraction_kept_is_the_target_or_the_prune_rate_as_given(words: str, density: float) -> None:
    config = parse_args(words.split())
    network = to_masked(build_model(config))
    draw_scores(network, torch.Generator().manual_seed(0), "signed")
    search = EdgePopup(network, config)
    assert search._share(search.naive_mask()) == pytest.approx(density, abs=2e-4)
    stored = parse_args(["--algo", "ep"]).model_validate(config.model_dump())
    assert stored.override_prune_rate == config.override_prune_rate


def test_the_global_fraction_rises_at_every_period_and_ends_at_the_target() -> None:
    config = parse_args("--algo global_ep_iter --epochs 10 --iter_period 2 --target_sparsity 5".split())
    search = EdgePopup(to_masked(build_model(config)), config)
    p = config.pruning_rate
    fractions = [search.pruned_fraction(epoch) for epoch in range(11)]
    expected = [1 - (1 - p) ** k for k in (1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4)]
    assert fractions == pytest.approx(expected)
    assert fractions[-1] == pytest.approx(0.95)


def test_a_late_start_of_the_global_prunings_still_ends_at_the_target(tmp_path: Path) -> None:
    words = "--algo global_ep_iter --epochs 6 --iter_period 1 --iter_start 2 --target_sparsity 20".split()
    ticket, _, config = _ticket(tmp_path, *words)
    assert list(config.prunings) == [3, 4, 5]
    assert remaining(ticket.masks) == math.floor(0.2 * total(ticket.masks))
    search = EdgePopup(to_masked(build_model(config)), config)
    kept = [1 - search.pruned_fraction(epoch) for epoch in range(7)]
    assert kept == pytest.approx([0.2 ** (k / 3) for k in (1, 1, 1, 1, 1, 2, 3)])


def test_another_density_than_the_target_has_its_true_reason(tmp_path: Path) -> None:
    words = ("--override_prune_rate", "--prune_rate", "0.5", "--epochs", "4", "--iter_period", "2")
    for algo in ("ep", "global_ep", "global_ep_iter"):
        ticket, _, _ = _ticket(tmp_path / algo, "--algo", algo, *words)
        assert ticket.facts["density_reason"] == "prune_rate 0.5 was asked for, whatever the target"


# ---- scores by hand ------------------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """y = v · (W x), no nonlinearity, so that every score can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.first.weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
        self.second.weight.data = torch.tensor([[2.0, -1.0], [0.0, 4.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)))


def test_synaptic_flow_is_the_sum_over_the_paths_through_a_weight() -> None:
    network = TwoLayers()
    for parameter in network.parameters():
        parameter.data.abs_()
    scores = synaptic_flow(network, torch.ones(1, 2))
    # first[i][j] has in-flow 1 and out-flow: column sums of |second|, 2 and 5.
    assert scores["first.weight"].tolist() == [[2.0, 4.0], [15.0, 2.5]]
    # second[i][j] has in-flow: row sums of |first|, 3 and 3.5.
    assert scores["second.weight"].tolist() == [[6.0, 3.5], [0.0, 14.0]]


def test_snip_scores_are_weight_times_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.algorithms import snip

    kept = {}
    monkeypatch.setattr(snip, "keep_highest", lambda scores, density, generator: kept.update(scores) or {})
    images, labels = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])

    class Data:
        class train:  # noqa: N801
            epoch = staticmethod(lambda generator: iter([(images, labels)]))

    for parts in (1, 2, 5):
        config = parse_args(["--algo", "snip", "--score_parts", str(parts)])
        snip.find_ticket(TwoLayers(), Data, config, Run(tmp_path / "r", tmp_path / "l", 1))
        network = TwoLayers()
        first, second = network.first.weight.detach(), network.second.weight.detach()
        hidden = images @ first.T
        error = (hidden @ second.T).softmax(1) - F.one_hot(labels, 2)
        assert torch.allclose(kept["second.weight"], (second * (error.T @ hidden / 3)).abs(), atol=1e-6)
        assert torch.allclose(kept["first.weight"], (first * (second.T @ error.T @ images / 3)).abs(), atol=1e-6)


def test_gradient_flow_is_weight_times_hessian_times_gradient() -> None:
    network = TwoLayers().double()
    batches = [
        (torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double(), torch.tensor([0, 1])),
        (torch.tensor([[3.0, 1.0], [-1.0, 0.25]]).double(), torch.tensor([1, 1])),
    ]
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(flat: Tensor) -> Tensor:
        first, second = flat[:4].view(2, 2), flat[4:].view(2, 2)
        return sum(F.cross_entropy(x @ first.T @ second.T / 200, y) for x, y in batches)

    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    found = torch.cat([part.flatten() for part in gradient_flow(network, batches).values()])
    assert torch.allclose(found, weights * (hessian @ gradient), rtol=1e-9, atol=1e-15)


# ---- counts --------------------------------------------------------------------------------------------------------


def test_erk_densities_by_hand() -> None:
    # Layers 4×2×3×3 (raw (4+2+3+3)/72) and 10×4 (raw 14/40); 20 of 112 places; raw · size = 12 and 14.
    assert allocate([12 / 72, 14 / 40], [72, 40], 20) == [9, 11]  # 9.23 and 10.77


def test_a_layer_that_would_be_overfull_gives_its_surplus_to_the_others() -> None:
    assert allocate([1.0, 0.1, 0.1], [10, 100, 100], 30) == [10, 10, 10]


@pytest.mark.parametrize("wanted", [1, 7, 55, 111, 112])
def test_allocated_counts_add_up_and_fit(wanted: int) -> None:
    sizes = [3, 40, 69]
    counts = allocate([0.9, 0.2, 0.05], sizes, wanted)
    assert sum(counts) == wanted
    assert all(0 <= count <= size for count, size in zip(counts, sizes))


def test_uniform_random_masks_have_one_density_everywhere(tmp_path: Path) -> None:
    ticket, _, config = _ticket(tmp_path, "--algo", "random")
    for kept, size in per_layer(ticket.masks).values():
        assert abs(kept - config.density * size) <= 1


@pytest.mark.parametrize("case", ["resnet20_seed0", "vgg16_seed6", "MobileNetV2_seed7"])
def test_smart_ratio_has_the_published_counts(case: str) -> None:
    golden = _golden(case)
    sizes = [math.prod(shape) for _, shape in golden["prunable"]]
    for pruned, counts in golden["smart_ratio"].items():
        assert layer_counts(sizes, float(pruned), case.partition("_")[0]) == counts


def test_the_second_version_of_smart_ratio_sets_first_layer_and_classifier() -> None:
    golden = _golden("resnet20_seed0")
    sizes = [math.prod(shape) for _, shape in golden["prunable"]]
    first, second = (layer_counts(sizes, 0.9856, "resnet20", version) for version in (1, 2))
    assert (second[0], second[-1]) == (149, 166)  # ⌊.3449074 · 432⌋ and ⌊.259375 · 640⌋
    assert second[1:-1] == first[1:-1]
    with pytest.raises(UserError, match="sr_version 2 is defined for resnet20"):
        layer_counts(sizes, 0.9, "resnet20", 2)


def test_a_target_below_the_classifiers_share_is_refused() -> None:
    with pytest.raises(UserError, match="fewer than the classifier's share"):
        layer_counts([100, 100], 0.99, "resnet20")
