"""Every way to find a ticket: exact counts, hand-computed scores, golden figures, and nothing left changed behind."""

import json
import math
from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, read_rows, same_bits, summary_of
from torch import Tensor, nn
from toys import complaint

from args_helper import Config, parse_args
from data.load import load_data
from models.build import build_model
from models.initialise import draw_scores
from models.masking import masked_layers, prunable_parameters, to_masked
from trainers.algorithms import grasp, snip, synflow
from trainers.algorithms.edge_popup import EdgePopup
from trainers.algorithms.grasp import gradient_flow
from trainers.algorithms.load import load_algorithm
from trainers.algorithms.random_mask import allocate, find_erk_ticket
from trainers.algorithms.smart_ratio import layer_counts
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train_step
from trainers.training.training import Training
from utils.masks import per_layer, remaining, total
from utils.run.run import Run

AT_INIT = ("magnitude", "snip", "grasp", "synflow", "random", "random_erk", "smart_ratio")


def _ticket(tmp_path: Path, *words: str) -> tuple[Ticket, Config]:
    """A ticket of a small network, found as a run finds it."""
    config = parse_args([*SMALL, "--device", "cpu", "--target_sparsity", "5", *words])
    run = Run(tmp_path / "run", tmp_path / "logs", config.effective_seed)
    return load_algorithm(config.algo)(build_model(config), load_data(config), config, run), config


def _edge_popup(words: str) -> EdgePopup:
    config = parse_args(words.split())
    network = to_masked(build_model(config))
    draw_scores(network, torch.Generator().manual_seed(0), "signed")
    return EdgePopup(network, config)


# ---- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "trainings"), [
    ("hc", 2), ("hc_iter", 2), ("hc_iter --freeze_weights false", 2),
    ("hc_iter --optimizer adam --fine_tune_optimizer adam --bias", 2), ("ep", 2), ("global_ep", 2),
    ("global_ep_iter", 2), ("cts --rewind_epoch 2", 3), ("imp --imp_rounds 2 --iter_period 3", 2), ("training", 1),
    ("snip", 1),
])  # fmt: skip
def test_gradients_are_there_before_the_first_step_and_stay_where_they_are(words, trainings, ran, monkeypatch):
    """Of every training: what a CUDA graph of the first backward pass allocates, the next replay overwrites."""
    seen: dict[Training, list[int]] = {}
    steps: Counter[Training] = Counter()

    def addresses(training: Training) -> list[int]:
        learned = [one for group in training.optimizer.param_groups for one in group["params"]]
        assert sum(tensor.numel() for tensor in training.gradients) == sum(one.numel() for one in learned)
        return [one.grad.data_ptr() for one in (*learned, *training.network.parameters()) if one.requires_grad]

    def step(training: Training, *batch: Any) -> Tensor:
        seen.setdefault(training, addresses(training))
        counts = train_step(training, *batch)
        assert addresses(training) == seen[training]
        steps[training] += 1
        return counts

    monkeypatch.setattr("trainers.training.loop.train_step", step)
    ran("--device", "cpu", "--epochs", 3, "--fine_tune_epochs", 4, "--skip_sanity_checks", "--algo", *words.split())
    assert len(steps) == trainings
    assert min(steps.values()) >= 10


@pytest.mark.parametrize("algo", AT_INIT)
@pytest.mark.parametrize("bias", [False, True])
def test_scoring_keeps_the_target_rounded_down_and_leaves_network_and_random_streams(algo, bias, tmp_path):
    config = parse_args([*SMALL, "--device", "cpu", "--target_sparsity", "5", "--algo", algo, f"--bias={bias}"])
    network, data = build_model(config), load_data(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    ticket = load_algorithm(config.algo)(network, data, config, Run(tmp_path / "run", tmp_path / "logs", 42))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same_bits([dict(network.state_dict()), ticket.state], [before] * 2)
    if algo != "smart_ratio":  # which rounds down in every layer
        assert remaining(ticket.masks) == math.floor(config.density * total(ticket.masks))


@pytest.mark.parametrize("algo", [*AT_INIT, "ep", "global_ep"])
def test_the_same_seed_finds_the_same_ticket_and_another_seed_another(algo, tmp_path):
    one, again, other = (
        _ticket(tmp_path / name, "--algo", algo, "--epochs", "1", "--seed", seed)[0].masks
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert same_bits(one, again)
    assert not same_bits(one, other)


# ---- edge-popup (its published figures are in test_golden.py) ------------------------------------------------------


def test_a_score_learns_by_its_sign_whether_it_is_on_or_off():
    config = parse_args(["--algo", "ep", "--target_sparsity", "50"])
    network = to_masked(nn.Sequential(nn.Linear(2, 1, bias=False)))
    network[0].weight.data = torch.tensor([[3.0, 5.0]])
    network[0].scores.data = torch.tensor([[-0.2, 0.1]])
    assert EdgePopup(network, config).naive_mask().tolist() == [True, False]
    network(torch.tensor([[1.0, 1.0]])).sum().backward()
    assert network[0].scores.grad.tolist() == [[-3.0, 5.0]]


@pytest.mark.parametrize("algo", ["global_ep", "global_ep_iter"])
def test_biases_are_ranked_among_themselves_and_have_their_own_count(algo):
    words = "--bias --arch Conv2 --width 0.1 --target_sparsity 30 --iter_period 2 --lr 0.1 --dataset Digits"
    search = _edge_popup(f"--algo {algo} {words}")
    for epoch in (0, 5, 100):
        search.before_epoch(epoch)
        for segment in search.flat.segments:  # the scores of biases are far greater than those of weights
            scores, mask = search.flat.scores[segment].abs(), search.naive_mask()[segment]
            assert int(mask.sum()) == len(mask) - math.ceil(search.pruned_fraction(epoch) * len(mask) - 1e-9)
            assert scores[mask].min() > scores[~mask].max()
    layer = masked_layers(search.network)["convs.0"]
    layer.bias.data.fill_(1.0)
    assert torch.equal(layer.effective_bias() == 1, search.flat.split(search.naive_mask())["convs.0.bias"])


def test_a_begun_search_goes_on_with_the_count_of_its_biases():
    words = "--algo global_ep_iter --epochs 10 --iter_period 2 --bias --target_sparsity 5"
    one, other = _edge_popup(words), _edge_popup(words)
    one.before_epoch(9)
    other.load_state(one.state())
    assert torch.equal(other.naive_mask(), one.naive_mask())


@pytest.mark.parametrize(("words", "density"), [
    ("ep --target_sparsity 20", 0.2), ("ep --prune_rate 0.3", 0.3), ("ep --prune_rate 0.3 --target_sparsity 20", 0.2),
    ("ep --prune_rate 0.3 --target_sparsity 20 --override_prune_rate", 0.3), ("global_ep --prune_rate 0.3", 0.7),
    ("global_ep --target_sparsity 20", 0.2),
])  # fmt: skip
def test_the_fraction_kept_is_the_target_or_the_prune_rate_as_given(words, density):
    search = _edge_popup(f"--algo {words}")
    assert search.flat.share(search.naive_mask()) == pytest.approx(density, abs=2e-4)


@pytest.mark.parametrize(("words", "density", "prunings"), [
    ("--epochs 10 --iter_period 2 --target_sparsity 5", 0.05, [1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4]),
    ("--epochs 6 --iter_period 1 --iter_start 2 --target_sparsity 20", 0.2, [1, 1, 1, 1, 1, 2, 3]),
])  # fmt: skip
def test_the_global_fraction_rises_at_every_period_and_ends_at_the_target(words, density, prunings):
    search = _edge_popup(f"--algo global_ep_iter {words}")
    kept = [1 - search.pruned_fraction(epoch) for epoch in range(len(prunings))]
    assert kept == pytest.approx([density ** (k / prunings[-1]) for k in prunings])


@pytest.mark.parametrize(("target", "kept"), [("100", 16900), ("20", 3380), ("0.001", 1)])
@pytest.mark.parametrize("algo", ["global_ep", "global_ep_iter"])
def test_a_global_threshold_ends_at_the_target_even_at_every_weight_or_one(algo, target, kept, tmp_path):
    words = f"--algo {algo} --epochs 6 --iter_period 1 --iter_start 2 --target_sparsity {target}"
    ticket, _ = _ticket(tmp_path, *words.split())  # the last of the prunings is due after the last epoch
    assert remaining(ticket.masks) == kept


def test_another_density_than_the_target_has_its_true_reason(tmp_path):
    words = ("--override_prune_rate", "--prune_rate", "0.5", "--epochs", "4", "--iter_period", "2")
    for algo in ("ep", "global_ep", "global_ep_iter"):
        ticket, _ = _ticket(tmp_path / algo, "--algo", algo, *words)
        assert ticket.facts["density_reason"] == "prune_rate 0.5 was asked for, whatever the target"


@pytest.mark.parametrize("algo", ["ep", "global_ep"])
def test_edge_popup_takes_scores_and_not_flags_from_a_search(algo, ran):
    begun = ran("--skip_fine_tune", "--save_every", "1", name="begun") / "checkpoints" / "search.pt"
    folder = ran("--skip_fine_tune", "--algo", algo, "--target_sparsity", "50", "--pretrained", begun, name=algo)
    last = read_rows(folder / "acc_and_sparsity.csv")[-1]
    measured = (pytest.approx(50, abs=0.1), summary_of(folder)["test_acc_before_finetune"])
    assert (float(last["model_sparsity"]), float(last["test_acc"])) == measured


# ---- scores by hand ------------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    """y = v · (W x), no nonlinearity, so that every score can be worked out by hand."""
    network = nn.Sequential(OrderedDict(first=nn.Linear(2, 2, bias=False), second=nn.Linear(2, 2, bias=False)))
    network.first.weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    network.second.weight.data = torch.tensor([[2.0, -1.0], [0.0, 4.0]])
    return network


def test_synaptic_flow_is_the_sum_over_the_paths_through_a_weight():
    network = two_layers()
    for parameter in network.parameters():
        parameter.data.abs_()
    scores = synflow.synaptic_flow(network, torch.ones(1, 2))
    # first[i][j] has in-flow 1 and out-flow: column sums of |second|, 2 and 5.
    assert scores["first.weight"].tolist() == [[2.0, 4.0], [15.0, 2.5]]
    # second[i][j] has in-flow: row sums of |first|, 3 and 3.5.
    assert scores["second.weight"].tolist() == [[6.0, 3.5], [0.0, 14.0]]


def test_synflow_brings_no_weight_back_though_none_has_a_flow(tmp_path, monkeypatch):
    rounds = []

    def without_flow(net, _ones):
        rounds.append({name: weight != 0 for name, weight in prunable_parameters(net).items()})
        return {name: torch.zeros_like(weight) for name, weight in prunable_parameters(net).items()}

    monkeypatch.setattr(synflow, "synaptic_flow", without_flow)
    with pytest.warns(UserWarning, match="no flow reaches 845 of the weights that it keeps, by chance"):
        ticket, _ = _ticket(tmp_path, "--algo", "synflow")
    assert all((new[name] <= old[name]).all() for old, new in pairwise([*rounds, ticket.masks]) for name in old)


def test_synflow_prunes_step_by_step_so_that_no_layer_is_lost(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 20, bias=False), nn.Linear(20, 1, bias=False))  # at once, the first would go
    net.register_buffer("allowed", torch.tensor([True]))  # such a buffer has no absolute value
    data = SimpleNamespace(spec=SimpleNamespace(shape=(100,)))
    ticket = synflow.find_ticket(net, data, parse_args(["--target_sparsity", "0.8"]), Run(tmp_path, tmp_path / "l", 1))
    assert remaining(ticket.masks) == 16 and all(mask.any() for mask in ticket.masks.values())


def test_synflow_tells_weights_that_are_equal_by_symmetry_apart_by_its_own_draw_and_not_by_rounding(tmp_path):
    config = parse_args([*SMALL, "--algo", "synflow", "--device", "cpu"])  # its weights have one magnitude in a layer
    data, masks = load_data(config), []
    for layout in (torch.contiguous_format, torch.channels_last):  # another order of sums, as on another device
        net = build_model(config).to(memory_format=layout)
        ticket = synflow.find_ticket(net, data, config, Run(tmp_path / "r", tmp_path / "l", 1))
        masks.append(torch.cat([mask.flatten() for mask in ticket.masks.values()]))
    assert torch.equal(*masks)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_snip_scores_are_weight_times_gradient(parts, tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(snip, "keep_highest", lambda scores, density, generator: kept.update(scores) or {})
    images, labels = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    data = SimpleNamespace(train=SimpleNamespace(epoch=lambda generator: iter([(images, labels)])))
    config = parse_args(["--algo", "snip", "--score_parts", str(parts)])
    snip.find_ticket(two_layers(), data, config, Run(tmp_path / "r", tmp_path / "l", 1))
    first, second = (parameter.detach() for parameter in two_layers().parameters())
    hidden = images @ first.T
    error = (hidden @ second.T).softmax(1) - F.one_hot(labels, 2)
    assert torch.allclose(kept["second.weight"], (second * (error.T @ hidden / 3)).abs(), atol=1e-6)
    assert torch.allclose(kept["first.weight"], (first * (second.T @ error.T @ images / 3)).abs(), atol=1e-6)


def test_gradient_flow_is_weight_times_hessian_times_gradient():
    network = two_layers().double()
    images = torch.tensor([[[1.0, 2.0], [0.5, -1.0]], [[3.0, 1.0], [-1.0, 0.25]]]).double()
    batches = list(zip(images, torch.tensor([[0, 1], [1, 1]])))
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(flat: Tensor) -> Tensor:
        first, second = flat[:4].view(2, 2), flat[4:].view(2, 2)
        return sum(F.cross_entropy(x @ first.T @ second.T / 200, y) for x, y in batches)

    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    found = torch.cat([part.flatten() for part in gradient_flow(network, batches).values()])
    assert torch.allclose(found, weights * (hessian @ gradient), rtol=1e-9, atol=1e-15)


def test_gradient_flow_goes_through_attention():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.attention(images, images, images, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    flow = gradient_flow(Attending(), [(torch.randn(3, 5, 4), torch.tensor([0, 1, 1]))])
    assert flow["head.weight"].abs().sum() > 0


# ---- counts --------------------------------------------------------------------------------------------------------


def test_erk_densities_by_hand(tmp_path):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Linear(4, 10, bias=False))
    config = parse_args(["--algo", "random_erk", "--target_sparsity", str(100 * 20.5 / 112)])
    masks = find_erk_ticket(net, None, config, Run(tmp_path, tmp_path / "l", 1)).masks
    # Of 20 weights: 4×2×3×3 has (4 + 2 + 3 + 3) / 72, 10×4 has 14 / 40; times the sizes 12 and 14, so 9.23 and 10.77.
    assert [kept for kept, _ in per_layer(masks).values()] == [9, 11]
    assert allocate([1.0, 0.1, 0.1], [10, 100, 100], 30) == [10, 10, 10]  # the first is full: others take its surplus


@pytest.mark.parametrize(("algo", "score"), [("magnitude", torch.abs), ("grasp", torch.clone)])
def test_the_weights_of_highest_score_are_kept(algo, score, tmp_path, monkeypatch):
    monkeypatch.setattr(grasp, "gradient_flow", lambda net, _batches: prunable_parameters(net))
    ticket, _ = _ticket(tmp_path, "--algo", algo, "--init", "kaiming_normal")
    values, kept = (torch.cat([part[name].flatten() for name in ticket.masks]) for part in (ticket.state, ticket.masks))
    assert score(values)[kept].min() >= score(values)[~kept].max()


def test_uniform_random_masks_have_one_density_everywhere(tmp_path):
    ticket, config = _ticket(tmp_path, "--algo", "random")
    assert all(abs(kept - config.density * size) <= 1 for kept, size in per_layer(ticket.masks).values())


def _golden(case: str) -> tuple[dict, list[int]]:
    golden = json.loads((Path(__file__).parent / "golden" / f"{case}.json").read_text())
    return golden["smart_ratio"], [math.prod(shape) for _, shape in golden["prunable"]]


@pytest.mark.parametrize("case", ["resnet20_seed0", "vgg16_seed6", "MobileNetV2_seed7"])
def test_smart_ratio_has_the_published_counts(case):
    published, sizes = _golden(case)
    assert {pruned: layer_counts(sizes, float(pruned), case.partition("_")[0]) for pruned in published} == published


def test_the_second_version_of_smart_ratio_sets_first_layer_and_classifier():
    _, sizes = _golden("resnet20_seed0")
    first, second = (layer_counts(sizes, 0.9856, "resnet20", version) for version in (1, 2))
    assert second == [149, *first[1:-1], 166]  # ⌊.3449074 · 432⌋ and ⌊.259375 · 640⌋


def test_smart_ratio_takes_no_network_for_a_vgg_by_its_folder():
    sizes = [432, 2304, 4608, 640]
    mine, other, vgg = (layer_counts(sizes, 0.5, arch) for arch in ("vgg/a.py:f", "a.py:f", "vgg11"))
    assert mine == other != vgg


@pytest.mark.parametrize(("sizes", "pruned", "arch", "counts"), [
    ([2588, 1139], 0.9, "vgg11", [31, 341]),  # 0.1 · 3727 − 0.3 · 1139 = 31, as doubles 30.999…
    ([10, 100, 50], 0.55, "resnet20", [9, 47, 15]),  # ratio 0.95 leaves room for half a weight, and is not full
    ([10, 100, 50], 0.45, "resnet20", [10, 62, 15]),  # ratio 1.2167 hands 2 weights on to 60.8
])  # fmt: skip
def test_smart_ratio_rounds_every_share_down_and_counts_a_whole_one_whole(sizes, pruned, arch, counts):
    assert layer_counts(sizes, pruned, arch) == counts


@pytest.mark.parametrize(("pruned", "version", "said"), [
    (0.9, 2, "sr_version 2 is defined for resnet20"), (0.99, 1, "fewer than the classifier's share"),
])  # fmt: skip
def test_smart_ratios_that_there_are_not_are_refused(pruned, version, said):
    assert said in complaint(layer_counts, [1000, 100], pruned, "resnet20", version)
    assert "needs a prunable layer before" in complaint(layer_counts, [1000], pruned, "resnet20", version)
