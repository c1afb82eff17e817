"""Gem-Miner: when and what it prunes, its moving threshold, rewinding, rescue, warm start, the ticket it hands on."""

import itertools
import signal
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from args_helper import parse_args
from models.initialise import draw_scores
from models.masking import masked_layers, to_masked
from tests.toys import Toy, splits
from trainers.algorithms import hypercube
from trainers.algorithms.hypercube import GemMiner, find_ticket
from trainers.tickets.ticket import Ticket
from utils.errors import Stopped
from utils.run.run import Run

STEPS = 4  # of an epoch
SCHEDULE = ("--epochs", "6", "--iter_period", "2", "--target_sparsity", "25")  # half after epoch 2, half after 4
THIRD = (*SCHEDULE, "--override_prune_rate", "true", "--prune_rate", "0.3")
STILL = ("--lr", "1e-9", "--wd", "0")  # scores stay where they are
QUANTIZED = ("--hc_quantized", "true")
PRUNE_TYPES = ["BottomK", "LocalBottomK", "FixThresholding", "ExactBottomK"]


def opened(folder: Path, seed: int = 7) -> Run:
    return Run(folder, folder / "events", seed)


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path / "run").until_stopped() as run:
        yield run


def search(run: Run, *words: str, net: nn.Module | None = None) -> Ticket:
    return find_ticket(net or Toy(), splits(8 * STEPS), parse_args([*SCHEDULE, "--lr", "0.3", *words]), run)


def pair(*words: str, scores: list[float], flags: list[int] | None = None, bias: bool = False) -> GemMiner:
    """A search over two linear layers of 6 and 4 weights (and 2 biases each) with these scores."""
    net = to_masked(nn.Sequential(nn.Linear(3, 2, bias=bias), nn.Linear(2, 2, bias=bias)))
    miner = GemMiner(net, parse_args([*words]))
    miner.flat.scores.data.copy_(torch.tensor(scores))
    if flags:
        miner.flat.flags.copy_(torch.tensor(flags, dtype=torch.bool))
    # As after a resumption: whatever depends on scores and flags is up to date.
    miner.load_state({**miner.state(), "threshold": None})
    return miner


def prune(miner: GemMiner, epoch: int = 2, seed: int = 0) -> list[int]:
    """The flags after the end of an epoch."""
    miner.after_epoch(epoch, lambda stream: torch.Generator().manual_seed(seed))
    return miner.flat.flags.int().tolist()


@pytest.fixture
def epochs(monkeypatch) -> list[dict]:
    """What a search has at the start and the end of every epoch, before and after pruning."""
    seen, before_epoch, after_epoch = [], GemMiner.before_epoch, GemMiner.after_epoch

    def noted_before(miner: GemMiner, epoch: int) -> None:
        at_start = {"start": miner.flat.scores.detach().clone(), "start_flags": miner.flat.flags.clone()}
        before_epoch(miner, epoch)
        seen.append({"epoch": epoch, "begun": miner.flat.scores.detach().clone(), **at_start})

    def noted_after(miner: GemMiner, epoch: int, draw: object) -> None:
        seen[-1] |= {"before": miner.flat.flags.clone(), "end": miner.flat.scores.detach().clone()}
        after_epoch(miner, epoch, draw)
        layers = masked_layers(miner.network).values()
        seen[-1] |= {"after": miner.flat.flags.clone(), "rewound": miner.flat.scores.detach().clone()}
        seen[-1]["in layers"] = torch.cat([layer.scores.detach().flatten() for layer in layers])

    monkeypatch.setattr(GemMiner, "before_epoch", noted_before)
    monkeypatch.setattr(GemMiner, "after_epoch", noted_after)
    return seen


def with_scores(monkeypatch, values: Tensor) -> None:
    """Let every search begin from these scores."""

    def draw(network: nn.Module, *_: object) -> None:
        layers = list(masked_layers(network).values())
        parts = values.split([layer.weight.numel() for layer in layers])
        for layer, part in zip(layers, parts):
            layer.scores.data.copy_(part.view_as(layer.scores))

    monkeypatch.setattr(hypercube, "draw_scores", draw)


def flat(masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([mask.flatten() for mask in masks.values()])


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- when it prunes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune_type", PRUNE_TYPES)
@pytest.mark.parametrize(("words", "times"), [((), [2, 4]), (("--iter_start", "2"), [4]), (("--algo", "hc"), [])])
def test_prunings_happen_after_their_epochs_and_flags_only_ever_shrink(prune_type, words, times, run, epochs):
    search(run, "--prune_type", prune_type, *words)
    assert [one["epoch"] for one in epochs] == list(range(6))
    assert [one["epoch"] for one in epochs if (one["before"] != one["after"]).any()] == times
    assert all((one["after"] <= one["before"]).all() for one in epochs)
    assert all(torch.equal(one["after"], later["before"]) for one, later in itertools.pairwise(epochs))


def test_the_schedule_of_bottom_k_ends_at_the_target(run, epochs):
    search(run, "--prune_type", "BottomK")
    assert [int(one["after"].sum()) for one in epochs] == [228, 228, 114, 114, 57, 57]


def test_exact_bottom_k_lands_on_the_target_rounded_down_whatever_the_roundings_before(run, epochs):
    search(run, "--prune_type", "ExactBottomK", "--target_sparsity", "8", "--iter_period", "1")
    # Each keeps ⌊0.08 ** (1 / 5) · n⌋; the last would keep 17, and ⌊0.08 · 228⌋ is 18.
    assert [int(one["after"].sum()) for one in epochs] == [228, 137, 82, 49, 29, 18]


@pytest.mark.parametrize(
    ("words", "switched_on"),
    [
        ((), [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
        (QUANTIZED, [0, 1, 1, 0, 1, 1, 1, 1, 0, 0]),
        ((*QUANTIZED, "--bottom_k_on_forward", "true"), [0, 1, 0, 0, 0, 0, 1, 1, 0, 0]),  # the 4 lowest of 7 are off
    ],
)
def test_a_pruned_weight_is_out_of_the_effective_network_whatever_its_score(words, switched_on):
    scores, flags = [1.0, 0.9, 0.8, 0.25, 0.7, 0.6, 0.95, 0.85, 1.0, 1.0], [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    miner = pair(*SCHEDULE, *words, scores=scores, flags=flags)
    layers = masked_layers(miner.network).values()
    effective = torch.cat([layer.effective_weight().flatten() for layer in layers])
    assert effective.ne(0).int().tolist() == switched_on


# ---- what it prunes ------------------------------------------------------------------------------------------------


def test_bottom_k_takes_the_lowest_of_the_network_and_all_ties_at_the_boundary():
    miner = pair(*THIRD, "--prune_type", "BottomK", scores=[0.1, 0.2, 0.3, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert prune(miner) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]  # ⌈0.3 · 10⌉ = 3, and the fourth tied with the third
    said = "each pruning of BottomK rounds its count up, and all that tie with the last one go too: 1 here"
    assert miner.density_reason().startswith(said)
    assert prune(miner, epoch=4) == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]  # ⌈0.3 · 6⌉ = 2 of those in play


def test_bottom_k_with_the_rate_of_the_schedule_halves_twice():
    miner = pair(*SCHEDULE, "--prune_type", "BottomK", scores=[0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 1.0])
    assert prune(miner) == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert prune(miner, epoch=4) == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]  # ⌈0.5 · 5⌉ = 3


def test_between_prunings_nothing_goes():
    miner = pair(*SCHEDULE, "--prune_type", "BottomK", scores=[0.1] * 10)
    assert [prune(miner, epoch) for epoch in (0, 1, 3, 5, 6)] == [[1] * 10] * 5


def test_bottom_k_orders_by_magnitude():
    miner = pair(*THIRD, "--prune_type", "BottomK", scores=[-0.9, 0.2, -0.1, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert prune(miner) == [1, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_local_bottom_k_takes_the_lowest_of_every_layer():
    miner = pair(*THIRD, "--prune_type", "LocalBottomK", scores=[0.1, 0.2, 0.3, 0.35, 0.9, 0.8, 0.99, 0.96, 0.98, 0.95])
    assert prune(miner) == [0, 0, 1, 1, 1, 1, 1, 0, 1, 0]  # ⌈1.8⌉ of 6 and ⌈1.2⌉ of 4
    assert prune(miner, epoch=4) == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]  # ⌈1.2⌉ of 4 and ⌈0.6⌉ of 2


def test_local_bottom_k_counts_exactly_and_draws_among_ties():
    found = []
    for seed in range(8):
        miner = pair(*THIRD, "--prune_type", "LocalBottomK", scores=[0.7] * 10)
        found.append(prune(miner, seed=seed))
        assert (sum(found[-1][:6]), sum(found[-1][6:])) == (4, 2)
    assert len(set(map(tuple, found))) > 3


def test_fix_thresholding_takes_scores_up_to_one_half():
    words = ("--prune_type", "FixThresholding", "--quantize_threshold", "0.1")
    miner = pair(*SCHEDULE, *words, scores=[0.0, 0.5, 0.51, 1.0, 0.49, 0.6, 0.5, 0.2, 0.8, 0.3])
    assert prune(miner) == [0, 0, 1, 1, 0, 1, 0, 0, 1, 0]
    miner.flat.scores.data.fill_(0.9)
    assert prune(miner, epoch=4) == [0, 0, 1, 1, 0, 1, 0, 0, 1, 0]


def test_exact_bottom_k_counts_exactly_over_the_network_and_draws_among_ties():
    found = []
    for seed in range(8):
        scores = [0.1, 0.3, 0.3, 0.3, 0.9, 0.8, 0.7, 0.3, 0.3, 0.95]
        miner = pair(*THIRD, "--prune_type", "ExactBottomK", scores=scores)
        found.append(prune(miner, seed=seed))
        assert sum(found[-1]) == 7
        assert [found[-1][place] for place in (0, 4, 5, 6, 9)] == [0, 1, 1, 1, 1]
    assert len(set(map(tuple, found))) > 3


def test_the_last_exact_pruning_lands_on_the_target_rounded_down():
    words = (*SCHEDULE, "--target_sparsity", "30", "--prune_type", "ExactBottomK")
    miner = pair(*words, scores=[score / 10 for score in range(1, 11)])
    assert prune(miner) == [0] * 5 + [1] * 5  # ⌈0.452 · 10⌉ go
    assert prune(miner, epoch=4) == [0] * 7 + [1] * 3  # where ⌈0.452 · 5⌉ = 3 would leave 2
    few = pair(*words, scores=[score / 10 for score in range(1, 11)], flags=[1, 1] + [0] * 8)
    assert prune(few, epoch=4) == [1, 1] + [0] * 8  # fewer than the target already: none goes, none comes back


def test_exact_bottom_k_keeps_the_given_rate_to_the_end():
    miner = pair(*THIRD, "--prune_type", "ExactBottomK", scores=[0.7] * 10)
    assert [sum(prune(miner, epoch)) for epoch in (2, 4)] == [7, 4]


@pytest.mark.parametrize(
    ("prune_type", "left"),
    [
        ("BottomK", [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]),
        ("LocalBottomK", [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]),
        ("FixThresholding", [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]),
        ("ExactBottomK", None),
    ],
)
def test_inverted_the_highest_go(prune_type, left):
    scores = [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.7, 0.5, 0.45]
    miner = pair(*THIRD, "--prune_type", prune_type, "--invert_sanity_check", "true", scores=scores)
    found = prune(miner)
    if left is None:  # one of the two that are tied, by chance
        assert found[:6] + found[8:] == [1, 1, 1, 1, 0, 0, 1, 1]
        assert sum(found[6:8]) == 1
    else:
        assert found == left


@pytest.mark.parametrize("prune_type", ["BottomK", "ExactBottomK"])
def test_biases_are_ranked_apart_with_their_own_count(prune_type):
    weights, biases = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.55, 0.65, 0.75, 0.85], [0.1, 0.2, 0.3, 0.4]
    miner = pair(*THIRD, "--prune_type", prune_type, scores=weights + biases, bias=True)
    assert prune(miner) == [0, 0, 1, 1, 1, 1, 0, 1, 1, 1] + [0, 0, 1, 1]


def test_without_an_override_the_rate_is_that_of_the_target():
    scores = [score / 10 for score in range(1, 11)]
    words = ("--prune_type", "BottomK", "--prune_rate", "0.3")
    assert sum(prune(pair(*SCHEDULE, *words, scores=scores))) == 5
    assert sum(prune(pair(*SCHEDULE, *words, "--override_prune_rate", "true", scores=scores))) == 7


def test_after_a_pruning_and_only_then_the_scores_in_play_are_shown():
    miner = pair(*SCHEDULE, "--prune_type", "BottomK", scores=[score / 10 for score in range(1, 11)])
    prune(miner, epoch=1)
    assert miner.describe()[1] == {}
    prune(miner, epoch=2)
    scalars, histograms = miner.describe()
    assert {name: sorted(values.tolist()) for name, values in histograms.items()} == {
        "scores/0": pytest.approx([0.6]),
        "scores/1": pytest.approx([0.7, 0.8, 0.9, 1.0]),
    }
    assert scalars["weights_in_play_percent"] == 50.0


# ---- a threshold that moves --------------------------------------------------------------------------------------

MOVING = (*THIRD, *QUANTIZED, "--prune_type", "BottomK", "--bottom_k_on_forward", "true")


def test_the_moving_threshold_is_the_lowest_score_but_a_fraction_of_those_in_play():
    miner = pair(*MOVING, scores=[score / 20 for score in range(1, 11)])
    miner.project()
    assert miner.rule.threshold.item() == pytest.approx(3 / 20)
    assert miner.naive_mask().int().tolist() == [0] * 3 + [1] * 7
    weight = miner.network[0].effective_weight().flatten()
    assert weight.ne(0).int().tolist() == [0, 0, 0, 1, 1, 1]


def test_the_moving_threshold_follows_the_scores_and_the_prunings():
    miner = pair(*MOVING, scores=[score / 20 for score in range(1, 11)])
    miner.flat.scores.data[0] = 0.9
    miner.before_step(0)
    assert miner.rule.threshold.item() == pytest.approx(4 / 20)
    assert prune(miner) == [1, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert miner.rule.threshold.item() == pytest.approx(7 / 20)  # ⌈0.3 · 7⌉ = 3 of 5, 6, 7, 8, 9, 10 and 18
    assert miner.naive_mask().int().tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_the_moving_threshold_is_judged_by_and_hands_over_the_gem(run):
    ticket = search(run, *QUANTIZED, "--prune_type", "BottomK", "--bottom_k_on_forward", "true", "--lr", "0.01")
    gem = int(flat(ticket.gem).sum())
    assert 20 < gem <= 57 - 29  # 57 are left, of which half, and what is tied with them, is switched off
    assert run.rows("search")[-1]["model_sparsity"] == pytest.approx(100 * gem / 228)


# ---- scores that are set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, 1])
def test_after_a_pruning_scores_are_what_they_were_at_the_start_of_the_epoch_to_rewind_to(to, run, epochs):
    search(run, "--prune_type", "BottomK", "--rewind_score", "true", "--rewind_to_epoch", str(to))
    assert not torch.equal(epochs[0]["start"], epochs[1]["start"])
    for one in epochs:
        expected = epochs[to]["start"] if one["epoch"] in (2, 4) else one["end"]
        assert torch.equal(one["rewound"], expected)
        assert torch.equal(one["in layers"], expected)
    assert not torch.equal(epochs[2]["end"], epochs[2]["rewound"])


@pytest.mark.parametrize("words", [("--rewind_score", "true"), ("--rewind_to_epoch", "1")])
def test_scores_are_not_rewound_unless_both_options_say_so(words, run, epochs):
    search(run, "--prune_type", "BottomK", *words)
    assert all(torch.equal(one["rewound"], one["end"]) for one in epochs)


def test_scores_are_ranked_before_they_are_rewound(run, epochs):
    search(run, "--prune_type", "BottomK", "--rewind_score", "true", "--rewind_to_epoch", "0")
    dropped = epochs[2]["before"] & ~epochs[2]["after"]
    assert epochs[2]["end"][dropped].max() < epochs[2]["end"][epochs[2]["after"]].min()


def test_the_smaller_half_of_the_weights_is_scored_0_at_epoch_1_and_the_larger_1():
    net = to_masked(nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False)))
    net[0].weight.data.copy_(torch.tensor([[0.1, -3.0, 0.2]]))
    net[1].weight.data.copy_(torch.tensor([[-0.3], [0.4]]))
    miner = GemMiner(net, parse_args([*SCHEDULE, "--drop_bottom_half_weights", "true"]))
    miner.flat.scores.data.fill_(0.7)
    for epoch in (0, 2, 3):
        miner.before_epoch(epoch)
        assert miner.flat.scores.eq(0.7).all()
    miner.before_epoch(1)
    assert miner.flat.scores.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]  # ⌈5 / 2⌉ = 3 go, over both layers


def test_without_the_option_epoch_1_leaves_the_scores_alone():
    miner = pair(*SCHEDULE, scores=[0.7] * 10)
    miner.before_epoch(1)
    assert miner.flat.scores.eq(0.7).all()


# ---- a search that died ------------------------------------------------------------------------------------------


def test_a_dead_search_says_so_and_stops_and_gives_the_highest_scores(run, monkeypatch):
    scores = torch.linspace(0.01, 0.5, 228)[torch.randperm(228, generator=torch.Generator().manual_seed(0))]
    with_scores(monkeypatch, scores)
    with pytest.warns(UserWarning, match="the search died after epoch 0: no weight is switched on any more"):
        ticket = search(run, *QUANTIZED, *STILL, "--target_sparsity", "9.9")
    assert torch.equal(flat(ticket.masks), scores >= scores.sort().values[-22])  # ⌊0.099 · 228⌋
    assert ticket.gem is None
    assert ticket.facts["rescued"] is True
    assert [row["epoch"] for row in run.rows("search")] == [0]
    assert run.rows("search")[0]["model_sparsity"] == 0.0


def test_of_scores_that_are_all_0_the_rescue_draws_exactly_as_many_and_the_same_again(run, tmp_path, monkeypatch):
    with_scores(monkeypatch, torch.zeros(228))
    with pytest.warns(UserWarning, match="died after epoch 0"):
        ticket = search(run, *QUANTIZED, *STILL)
    assert int(flat(ticket.masks).sum()) == 57
    with opened(tmp_path / "other", seed=8).until_stopped() as other, pytest.warns(UserWarning, match="died"):
        assert not same(search(other, *QUANTIZED, *STILL).masks, ticket.masks)
    monkeypatch.setattr("trainers.training.loop.train_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.warns(UserWarning, match="died after epoch 0"):
        assert same(search(run, *QUANTIZED, *STILL).masks, ticket.masks)


def test_a_search_that_dies_of_a_pruning_stops_there(run, monkeypatch):
    with_scores(monkeypatch, torch.full((228,), 0.4))
    words = ("--quantize_threshold", "0.3", "--prune_type", "FixThresholding", "--target_sparsity", "10")
    with pytest.warns(UserWarning, match="died after epoch 2"):
        ticket = search(run, *QUANTIZED, *STILL, *words)
    assert [row["epoch"] for row in run.rows("search")] == [0, 1, 2]
    assert int(flat(ticket.masks).sum()) == 22


def test_the_rescue_looks_at_all_weights_pruned_or_not_and_keeps_every_bias():
    scores = [score / 20 for score in range(1, 11)] + [0.0] * 4
    miner = pair(*SCHEDULE, scores=scores, flags=[1] * 8 + [0, 0] + [0] * 4, bias=True)
    masks = miner.highest(2, torch.Generator())
    assert flat(masks).int().tolist() == [0] * 8 + [1, 1] + [1] * 4
    assert flat(miner.highest(0, torch.Generator())).int().tolist() == [0] * 9 + [1] + [1] * 4


def test_unrounded_scores_are_rescued_at_hand_over_and_not_stopped_before(run, monkeypatch):
    with_scores(monkeypatch, torch.linspace(0.01, 0.5, 228))
    with pytest.warns(UserWarning, match="the search died after epoch 5: no weight is switched on any more"):
        ticket = search(run, *STILL, "--prune_type", "BottomK")
    assert ticket.facts["rescued"] is True
    assert flat(ticket.masks).int().tolist() == [0] * 171 + [1] * 57
    assert len(run.rows("search")) == 6


def test_a_living_search_is_not_rescued(run):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the search died|hc prunes nothing")
        assert search(run, *QUANTIZED, "--prune_type", "BottomK").facts["rescued"] is False
    assert len(run.rows("search")) == 6


# ---- the ticket ----------------------------------------------------------------------------------------------------


def test_unflagged_the_masks_are_all_that_was_never_pruned_and_otherwise_the_gem(tmp_path, monkeypatch, epochs):
    scores = torch.linspace(0.01, 1.0, 228)
    with_scores(monkeypatch, scores)
    tickets = []
    for unflag in ("false", "true"):
        words = (*STILL, "--prune_type", "BottomK", "--quantize_threshold", "0.9", "--unflag_before_finetune", unflag)
        with opened(tmp_path / unflag).until_stopped() as run, warnings.catch_warnings():
            warnings.filterwarnings("error", message="the search died|hc prunes nothing")
            tickets.append(search(run, *QUANTIZED, *words))
    flagged, unflagged = tickets
    assert same(flagged.masks, flagged.gem)
    assert same(flagged.gem, unflagged.gem)
    assert torch.equal(flat(unflagged.masks), epochs[-1]["after"])
    assert torch.equal(flat(unflagged.gem), scores > 0.9)
    assert int(flat(unflagged.masks).sum()) == 57 > int(flat(unflagged.gem).sum())


def test_hc_gives_all_that_is_switched_on(run, monkeypatch):
    scores = torch.linspace(0.01, 1.0, 228)
    with_scores(monkeypatch, scores)
    ticket = search(run, "--algo", "hc", *STILL)
    assert torch.equal(flat(ticket.masks), scores > 0.5)
    assert same(ticket.masks, ticket.gem)


def test_hc_warns_that_unflagging_restores_the_dense_network(run):
    with pytest.warns(UserWarning, match="hc prunes nothing for good, so that unflagging restores the dense network"):
        ticket = search(run, "--algo", "hc", "--unflag_before_finetune", "true")
    assert flat(ticket.masks).all()
    assert not flat(ticket.gem).all()


def test_the_state_of_a_ticket_is_the_plain_networks_whole_with_nothing_zeroed(run):
    net, drawn = Toy(), Toy()
    ticket = search(run, *QUANTIZED, "--prune_type", "BottomK", net=net)
    assert ticket.state.keys() == drawn.state_dict().keys()
    for name, mask in ticket.masks.items():
        assert torch.equal(ticket.state[name], drawn.state_dict()[name])
        assert mask.dtype == torch.bool
        assert mask.shape == ticket.state[name].shape
        assert not mask.all()
    assert list(ticket.masks) == list(ticket.gem) == ["conv.weight", "out.weight"]
    assert torch.equal(ticket.state["norm.running_mean"], net.norm.running_mean)
    assert ticket.state["norm.num_batches_tracked"] == 6 * STEPS
    Toy().load_state_dict(ticket.state)


def test_a_ticket_is_a_copy_that_the_network_cannot_change(run):
    net = Toy()
    ticket = search(run, *QUANTIZED, "--unflag_before_finetune", "true", net=net)
    parts = (ticket.state, ticket.masks, ticket.gem)
    copies = [{name: value.clone() for name, value in part.items()} for part in parts]
    net.norm.running_mean.fill_(9.0)
    for layer in masked_layers(net).values():
        layer.weight.data.fill_(9.0)
        layer.flag.fill_(False)
    assert all(same(part, copy) for part, copy in zip(parts, copies))
    assert all(flat(part).any() for part in parts)


def test_biases_are_part_of_a_ticket_where_there_are_any(run):
    ticket = search(run, *QUANTIZED, "--prune_type", "BottomK", "--unflag_before_finetune", "true", net=Toy(bias=True))
    assert list(ticket.masks) == ["conv.weight", "out.weight", "conv.bias", "out.bias"]
    counts = [int(mask.sum()) for mask in ticket.masks.values()]
    assert sum(counts[:2]) == 57
    assert sum(counts[2:]) == 1  # 7, of which ⌈3.5⌉ go, and ⌈1.5⌉ of the 3 left


# ---- how it begins -------------------------------------------------------------------------------------------------


def test_scores_are_drawn_from_the_seed_of_the_weights_and_not_of_the_run(tmp_path, epochs):
    for number, words in enumerate([(), ("--seed", "3"), ("--seed", "3", "--fixed_init", "true"), ("--seed", "24")]):
        with opened(tmp_path / str(number)).until_stopped() as run:
            search(run, *words)
    starts = [one["start"] for one in epochs if one["epoch"] == 0]
    assert torch.equal(starts[2], starts[3])
    assert len({tuple(start.tolist()) for start in starts}) == 3
    assert all(start.min() >= 0 and start.max() < 1 for start in starts)


def test_score_init_is_the_configs(run, epochs):
    search(run, "--score_init", "half", "--epochs", "3")
    assert epochs[0]["start"].eq(0.5).all()


def test_scores_and_flags_of_a_pretrained_file_are_taken_up(run, tmp_path, epochs):
    trained = to_masked(Toy())
    draw_scores(trained, torch.Generator().manual_seed(99), "unif")
    trained.conv.flag[1:3] = False
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "trained.pt")
    search(run, "--pretrained", str(tmp_path / "trained.pt"), "--prune_type", "BottomK")
    layers = masked_layers(trained).values()
    assert torch.equal(epochs[0]["start"], torch.cat([layer.scores.detach().flatten() for layer in layers]))
    assert torch.equal(epochs[0]["start_flags"], torch.cat([layer.flag.flatten() for layer in layers]))
    # From 210 in play two prunings go to a quarter of all 228, 57, where none tie; each rounds its count up.
    assert [int(one["after"].sum()) for one in epochs] == [210, 210, 109, 109, 56, 56]


def test_a_pretrained_file_without_scores_leaves_the_drawn_ones(tmp_path, epochs):
    torch.save(Toy().state_dict(), tmp_path / "plain.pt")
    for number, words in enumerate([(), ("--pretrained", str(tmp_path / "plain.pt"))]):
        with opened(tmp_path / str(number)).until_stopped() as run:
            search(run, "--epochs", "3", *words)
    assert torch.equal(epochs[0]["start"], epochs[3]["start"])


def test_a_search_can_begin_at_a_later_epoch_of_its_schedule(run, epochs):
    search(run, "--start_epoch", "3", "--prune_type", "BottomK", "--lr_policy", "multistep_lr", "--milestones", "4")
    assert [one["epoch"] for one in epochs] == [3, 4, 5]
    assert [row["lr"] for row in run.rows("search")] == pytest.approx([0.3, 0.03, 0.03])
    assert [int(one["after"].sum()) for one in epochs] == [228, 57, 57]  # one pruning, to the quarter, is left


def test_a_search_that_goes_on_with_the_flags_of_its_file_prunes_as_the_whole_one_would(run, tmp_path, epochs):
    trained = to_masked(Toy())
    for layer in masked_layers(trained).values():
        layer.flag.flatten()[::2] = False
    draw_scores(trained, torch.Generator().manual_seed(99), "unif")
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "begun.pt")
    search(run, "--start_epoch", "3", "--pretrained", str(tmp_path / "begun.pt"), "--prune_type", "BottomK")
    assert [int(one["after"].sum()) for one in epochs] == [114, 57, 57]


@pytest.mark.parametrize(
    ("kept", "start", "said"),
    [
        (228, "5", "the target of 25% is missed: start_epoch 5 lies after the last pruning, that of epoch 4"),
        (40, "0", "the target of 25% is missed: only 40 weights were unpruned when the search began"),
    ],
)
def test_a_target_out_of_reach_is_told_with_its_reason(kept, start, said, run, tmp_path):
    trained, left = to_masked(Toy()), kept
    for layer in masked_layers(trained).values():
        layer.flag.flatten()[min(left, layer.flag.numel()) :] = False
        left -= int(layer.flag.sum())
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "begun.pt")
    words = ("--start_epoch", start, "--pretrained", str(tmp_path / "begun.pt"), "--prune_type", "ExactBottomK")
    with pytest.warns(UserWarning, match=said):
        ticket = search(run, *words, *STILL)
    assert ticket.facts["density_reason"].startswith(said.partition(": ")[2])
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == kept


# ---- the same again ------------------------------------------------------------------------------------------------

SEARCHES = {
    "bottom k, rewound": (*QUANTIZED, "--prune_type", "BottomK", "--rewind_score", "true", "--rewind_to_epoch", "1"),
    "exact, probable": (
        "--prune_type", "ExactBottomK", "--score_init", "bern", "--round", "prob", "--num_test", "2",
        "--unflag_before_finetune", "true",
    ),
    "local, by adam": (*QUANTIZED, "--prune_type", "LocalBottomK", "--optimizer", "adam", "--regularization", "L2"),
    "moving threshold": (*QUANTIZED, "--prune_type", "BottomK", "--bottom_k_on_forward", "true"),
    "by magnitude": ("--prune_type", "BottomK", "--drop_bottom_half_weights", "true", "--freeze_weights", "false"),
}  # fmt: skip


def figures(run: Run) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.rows("search")]


@pytest.mark.parametrize("words", [(), STILL], ids=["learned", "tied"])
def test_the_same_seed_twice_gives_the_same_bits_and_another_one_others(words, tmp_path):
    tickets, rows = [], []
    for number, (seed, around) in enumerate([(7, 1), (7, 2), (8, 1)]):
        torch.manual_seed(around)
        with opened(tmp_path / str(number), seed).until_stopped() as run:
            tickets.append(search(run, *SEARCHES["exact, probable"], *words))
            rows.append(figures(run))
    first, again, other = tickets
    assert rows[0] == rows[1] != rows[2]
    assert same(first.state, again.state)
    assert same(first.masks, again.masks)
    assert not same(first.masks, other.masks)


def stop_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let SIGTERM arrive in the number-th step (0-based, over all epochs) of a search."""
    before_step, steps = GemMiner.before_step, itertools.count()

    def stopping(miner: GemMiner, step: int) -> None:
        if next(steps) == number:
            signal.raise_signal(signal.SIGTERM)
        before_step(miner, step)

    patch.setattr(GemMiner, "before_step", stopping)


def stopped_and_gone_on_with(folder: Path, step: int, words: tuple[str, ...]) -> tuple[Ticket, list[dict]]:
    with opened(folder).until_stopped() as run, pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_in_step(patch, step)
        search(run, *words)
    with opened(folder).until_stopped() as run:
        return search(run, *words), figures(run)


def undisturbed(folder: Path, words: tuple[str, ...]) -> tuple[Ticket, list[dict]]:
    with opened(folder).until_stopped() as run:
        return search(run, *words), figures(run)


# In the first epoch; in the middle of epoch 1, after the snapshot; at the end of epoch 2, pruned; in epoch 3.
@pytest.mark.parametrize("step", [0, STEPS + 1, 3 * STEPS - 1, 3 * STEPS + 2])
@pytest.mark.parametrize("words", SEARCHES.values(), ids=SEARCHES.keys())
def test_a_stopped_search_goes_on_to_the_very_ticket_of_an_undisturbed_one(words, step, tmp_path):
    whole, rows = undisturbed(tmp_path / "whole", words)
    ticket, parts = stopped_and_gone_on_with(tmp_path / "parts", step, words)
    assert parts == rows
    assert same(ticket.state, whole.state)
    assert same(ticket.masks, whole.masks)
    assert same(ticket.gem, whole.gem)


def test_a_search_whose_threshold_moves_now_and_then_goes_on_as_undisturbed(tmp_path):
    words = (*SEARCHES["moving threshold"], "--project_freq", "4")
    whole, rows = undisturbed(tmp_path / "whole", words)
    ticket, parts = stopped_and_gone_on_with(tmp_path / "parts", STEPS + 1, words)
    assert parts == rows
    assert same(ticket.state, whole.state)
    assert same(ticket.masks, whole.masks)


def test_a_finished_search_gives_its_ticket_again_without_training(run, monkeypatch):
    words = SEARCHES["bottom k, rewound"]
    first = search(run, *words)
    monkeypatch.setattr("trainers.training.loop.train_step", lambda *_: pytest.fail("a step was taken"))
    again = search(run, *words)
    assert same(first.state, again.state)
    assert same(first.masks, again.masks)
    assert same(first.gem, again.gem)
