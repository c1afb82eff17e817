"""Gem-Miner: when and what it prunes, its moving threshold, rewinding, rescue, warm start, the ticket it hands on."""

import itertools
import signal
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from args_helper import parse_args
from models import build
from models.initialise import draw_scores
from models.masking import FlatScores, masked_layers, to_masked
from tests.conftest import opened, same_bits
from tests.toys import Toy, splits
from trainers.algorithms.gem_miner import GemMiner
from trainers.algorithms.hypercube import find_ticket
from trainers.tickets.ticket import Ticket
from utils.errors import Stopped
from utils.run.run import Run

STEPS = 4  # of an epoch
SCHEDULE = ("--epochs", "6", "--iter_period", "2", "--target_sparsity", "25")  # half after epoch 2, half after 4
THIRD = (*SCHEDULE, "--override_prune_rate", "true", "--prune_rate", "0.3")
STILL = ("--lr", "1e-9", "--wd", "0")  # scores stay where they are
QUANTIZED = ("--hc_quantized", "true")
TYPES = ("BottomK", "ExactBottomK", "LocalBottomK", "FixThresholding")
BOTTOM_K, EXACT, LOCAL, FIXED = (("--prune_type", name) for name in TYPES)
MOVING = (*QUANTIZED, *BOTTOM_K, "--bottom_k_on_forward", "true")
RISING = [score / 10 for score in range(1, 11)]


def search(run: Run, *words: str, net: nn.Module | None = None) -> Ticket:
    return find_ticket(net or Toy(), splits(8 * STEPS), parse_args([*SCHEDULE, "--lr", "0.3", *words]), run)


def pair(*words: str, scores: list[float], flags: list[int] | None = None) -> GemMiner:
    """A search over two linear layers of 6 and 4 weights (with 14 scores: 2 biases each) with these scores."""
    bias = len(scores) == 14
    net = to_masked(nn.Sequential(nn.Linear(3, 2, bias=bias), nn.Linear(2, 2, bias=bias)))
    miner = GemMiner(net, parse_args([*words]))
    miner.flat.scores.data.copy_(torch.tensor(scores))
    if flags:
        miner.flat.flags.copy_(torch.tensor(flags, dtype=torch.bool))
    # As after a resumption: whatever depends on scores and flags is up to date.
    miner.load_state({**miner.state(), "threshold": None})
    return miner


def bits(values: Tensor) -> str:
    """Flags as `1101`."""
    return "".join(str(int(value)) for value in values)


def prune(miner: GemMiner, epoch: int = 2, seed: int = 0) -> str:
    """The flags after the end of an epoch."""
    miner.after_epoch(epoch, lambda stream: torch.Generator().manual_seed(seed))
    return bits(miner.flat.flags)


@pytest.fixture
def epochs(monkeypatch) -> list[dict]:
    """What a search has at the start and the end of every epoch, before and after pruning."""
    seen, before_epoch, after_epoch = [], GemMiner.before_epoch, GemMiner.after_epoch

    def now(miner: GemMiner, scores: str, flags: str) -> dict:
        in_layers = torch.cat([layer.scores.detach().flatten() for layer in masked_layers(miner.network).values()])
        return {scores: in_layers, flags: miner.flat.flags.clone()}

    def noted_before(miner: GemMiner, epoch: int) -> None:
        seen.append({"epoch": epoch, **now(miner, "start", "start_flags")})
        before_epoch(miner, epoch)
        seen[-1] |= now(miner, "begun", "before")

    def noted_after(miner: GemMiner, epoch: int, draw: object) -> None:
        seen[-1] |= now(miner, "end", "before")
        after_epoch(miner, epoch, draw)
        seen[-1] |= now(miner, "rewound", "after")

    monkeypatch.setattr(GemMiner, "before_epoch", noted_before)
    monkeypatch.setattr(GemMiner, "after_epoch", noted_after)
    return seen


def counts(epochs: list[dict]) -> list[int]:
    return [int(one["after"].sum()) for one in epochs]


def with_scores(monkeypatch, values: Tensor) -> None:
    """Let every search begin from these scores."""
    monkeypatch.setattr(build, "draw_scores", lambda network, *_: FlatScores(network).scores.data.copy_(values))


def flat(masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([mask.flatten() for mask in masks.values()])


# ---- when it prunes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune_type", TYPES)
@pytest.mark.parametrize(("words", "times"), [((), [2, 4]), (("--iter_start", "2"), [4]), (("--algo", "hc"), [])])
def test_prunings_happen_after_their_epochs_and_flags_only_ever_shrink(prune_type, words, times, run, epochs):
    search(run, "--prune_type", prune_type, *words)
    assert [one["epoch"] for one in epochs] == list(range(6))
    assert [one["epoch"] for one in epochs if (one["before"] != one["after"]).any()] == times
    assert all((one["after"] <= one["before"]).all() for one in epochs)
    assert all(torch.equal(one["after"], later["before"]) for one, later in itertools.pairwise(epochs))
    assert all(torch.equal(one["begun"], one["start"]) for one in epochs)


def test_the_last_exact_pruning_lands_on_the_target_rounded_down_whatever_the_roundings_before(run, epochs):
    search(run, *EXACT, "--target_sparsity", "8", "--iter_period", "1")
    # Each keeps ⌊0.08 ** (1 / 5) · n⌋; the last would keep 17, and ⌊0.08 · 228⌋ is 18.
    assert counts(epochs) == [228, 137, 82, 49, 29, 18]


# ---- what it prunes ------------------------------------------------------------------------------------------------

INVERTED = (*THIRD, "--invert_sanity_check", "true")
TIED_ABOVE = [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.7, 0.5, 0.45]
WITH_BIASES = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.55, 0.65, 0.75, 0.85, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(("words", "scores", "first", "second"), [
    # ⌈0.3 · 10⌉ = 3, and the fourth tied with the third; then ⌈0.3 · 6⌉ = 2 of the unpruned
    ((*THIRD, *BOTTOM_K), [0.1, 0.2, 0.3, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "0000111111", "0000111100"),
    ((*THIRD, *BOTTOM_K), [-0.9, 0.2, -0.1, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "1000111111", "1000111000"),
    # The rate of the target, a half, also where another is given and not to override it; then ⌈0.5 · 5⌉ = 3.
    ((*SCHEDULE, *BOTTOM_K, "--prune_rate", "0.3"), RISING, "0000011111", "0000000011"),
    # ⌈1.8⌉ of 6 and ⌈1.2⌉ of 4, then ⌈1.2⌉ of 4 and ⌈0.6⌉ of 2
    ((*THIRD, *LOCAL), [0.1, 0.2, 0.3, 0.35, 0.9, 0.8, 0.99, 0.96, 0.98, 0.95], "0011111010", "0000111000"),
    ((*SCHEDULE, *FIXED), [0.0, 0.5, 0.51, 1.0, 0.49, 0.6, 0.5, 0.2, 0.8, 0.3], "0011010010", "0011010010"),
    ((*THIRD, *EXACT), RISING, "0001111111", "0000001111"),  # the given rate to the end: ⌈0.3 · 7⌉ = 3
    # ⌈0.452 · 10⌉ go, and the last pruning lands on ⌊0.3 · 10⌋, where ⌈0.452 · 5⌉ = 3 would leave 2.
    ((*SCHEDULE, "--target_sparsity", "30", *EXACT), RISING, "0000011111", "0000000111"),
    # Inverted, the highest go.
    ((*INVERTED, *BOTTOM_K), TIED_ABOVE, "1111000011", "1111000000"),
    ((*INVERTED, *LOCAL), TIED_ABOVE, "1111000011", "1100000001"),
    ((*INVERTED, *FIXED), TIED_ABOVE, "1111000011", "1111000011"),
    ((*INVERTED, *EXACT), RISING, "1111111000", "1111000000"),
    # Biases are ranked apart, with their own count.
    ((*THIRD, *BOTTOM_K), WITH_BIASES, "00111101110011", "00011100010001"),
    ((*THIRD, *EXACT), WITH_BIASES, "00111101110011", "00011100010001"),
])  # fmt: skip
def test_prunings_by_hand(words, scores, first, second):
    miner = pair(*words, scores=scores)
    assert (prune(miner), prune(miner, epoch=4)) == (first, second)
    if scores[2] == scores[3]:
        said = "each pruning of BottomK rounds its count up, and all that tie with the last one go too: 1 here"
        assert miner.density_reason().startswith(said)
    if "--override_prune_rate" in words:
        assert "prune_rate 0.3 was asked for, whatever the target" in miner.density_reason()


def test_the_reason_for_a_density_counts_weights_and_no_biases():
    miner = pair(*SCHEDULE, *BOTTOM_K, scores=[*RISING, *[0.1] * 4])
    assert miner.density_reason().endswith("; 5 more were switched off by their scores without being pruned")
    prune(miner)  # half of the weights, and the tie of four biases
    assert "all that tie" not in miner.density_reason()


@pytest.mark.parametrize(("prune_type", "first", "kept"), [(LOCAL, 6, (4, 2)), (EXACT, 10, (7, 0))])
def test_local_and_exact_bottom_k_count_exactly_and_draw_among_ties(prune_type, first, kept):
    found = {prune(pair(*THIRD, *prune_type, scores=[0.7] * 10), seed=seed) for seed in range(8)}
    assert {(flags[:first].count("1"), flags[first:].count("1")) for flags in found} == {kept}
    assert len(found) > 3


def test_the_last_exact_pruning_brings_none_back_where_fewer_than_the_target_are_left():
    miner = pair(*SCHEDULE, "--target_sparsity", "30", *EXACT, scores=RISING, flags=[1, 1] + [0] * 8)
    assert prune(miner, epoch=4) == "1100000000"


# ---- a threshold that moves --------------------------------------------------------------------------------------


def test_the_moving_threshold_follows_the_lowest_unpruned_scores():
    miner = pair(*THIRD, *MOVING, scores=[score / 2 for score in RISING])

    def found() -> tuple[float, str]:
        return pytest.approx(miner.rule.threshold.item()), bits(miner.naive_mask())

    miner.project()
    assert found() == (3 / 20, "0001111111")
    miner.flat.scores.data[0] = 0.9
    miner.before_step(0)
    assert found() == (4 / 20, "1000111111")
    assert prune(miner) == "1000111111"
    assert found() == (7 / 20, "1000000111")  # ⌈0.3 · 7⌉ = 3 of 5, 6, 7, 8, 9, 10 and 18


def test_a_moving_threshold_without_prunings_ahead_switches_nothing_off():
    assert bits(pair(*MOVING, "--target_sparsity", "100", scores=[0.5] * 14).naive_mask()) == "1" * 14


def test_the_moving_threshold_is_judged_by_and_hands_over_the_gem(run):
    gem = int(flat(search(run, *MOVING, "--lr", "0.01").gem).sum())
    assert 20 < gem <= 57 - 29  # 57 are left, of which half, and what is tied with them, is switched off
    assert run.rows("search")[-1]["model_sparsity"] == pytest.approx(100 * gem / 228)


# ---- scores that are set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "to"), [
    (("--rewind_score", "true", "--rewind_to_epoch", "0"), 0),
    (("--rewind_score", "true", "--rewind_to_epoch", "1"), 1), (("--rewind_score", "true"), None),
    (("--rewind_to_epoch", "1"), None),
])  # fmt: skip
def test_scores_are_ranked_and_then_rewound_to_the_start_of_an_epoch_if_both_options_say_so(words, to, run, epochs):
    search(run, *BOTTOM_K, *words)
    assert not torch.equal(epochs[0]["start"], epochs[1]["start"])
    assert to is None or not torch.equal(epochs[2]["end"], epochs[2]["rewound"])
    for one in epochs:
        rewound = to is not None and one["epoch"] in (2, 4)
        assert torch.equal(one["rewound"], epochs[to]["start"] if rewound else one["end"])
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


# ---- a search that died ------------------------------------------------------------------------------------------

UP_TO_HALF = torch.linspace(0.01, 0.5, 228)


@pytest.mark.parametrize(("scores", "words", "last", "kept"), [
    # ⌊0.099 · 228⌋
    (UP_TO_HALF[torch.arange(228) * 5 % 228], (*QUANTIZED, "--target_sparsity", "9.9"), 0, 22),
    # Of a pruning.
    (UP_TO_HALF, (*QUANTIZED, *FIXED, "--quantize_threshold", "0.3", "--target_sparsity", "10"), 2, 22),
    # Unrounded scores are rescued at hand-over, and not stopped before.
    (UP_TO_HALF, BOTTOM_K, 5, 57),
])  # fmt: skip
def test_a_dead_search_says_so_and_stops_and_gives_the_highest_scores(scores, words, last, kept, run, monkeypatch):
    with_scores(monkeypatch, scores)
    with pytest.warns(UserWarning, match=f"the search died after epoch {last}: no weight is switched on any more"):
        ticket = search(run, *STILL, *words)
    assert torch.equal(flat(ticket.masks), scores >= scores.sort().values[-kept])
    assert (ticket.gem, ticket.facts) == (None, {"rescued": True})
    assert [row["epoch"] for row in run.rows("search")] == list(range(last + 1))


def test_of_scores_that_are_all_0_the_rescue_draws_exactly_as_many_and_the_same_again(run, tmp_path, monkeypatch):
    with_scores(monkeypatch, torch.zeros(228))
    with opened(tmp_path / "other", seed=8).until_stopped() as other, pytest.warns(UserWarning, match="after epoch 0"):
        first, another = (search(one, *QUANTIZED, *STILL).masks for one in (run, other))
    assert int(flat(first).sum()) == 57
    assert not same_bits(first, another)
    monkeypatch.setattr("trainers.training.loop.train_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.warns(UserWarning, match="died after epoch 0"):
        assert same_bits(search(run, *QUANTIZED, *STILL).masks, first)


def test_the_rescue_looks_at_all_weights_pruned_or_not_and_keeps_every_bias():
    miner = pair(*SCHEDULE, scores=[score / 2 for score in RISING] + [0.0] * 4, flags=[1] * 8 + [0] * 6)
    assert bits(flat(miner.highest(2, torch.Generator()))) == "00000000111111"
    assert bits(flat(miner.highest(0, torch.Generator()))) == "00000000011111"


# ---- the ticket ----------------------------------------------------------------------------------------------------


def test_unflagged_the_masks_are_all_that_was_never_pruned_and_otherwise_the_gem(tmp_path, monkeypatch, epochs):
    scores = torch.linspace(0.01, 1.0, 228)
    with_scores(monkeypatch, scores)
    tickets = []
    for unflag in ("false", "true"):
        words = (*STILL, *BOTTOM_K, "--quantize_threshold", "0.9", "--unflag_before_finetune", unflag)
        with opened(tmp_path / unflag).until_stopped() as run, warnings.catch_warnings():
            warnings.filterwarnings("error", message="the search died|nothing was pruned")
            tickets.append(search(run, *QUANTIZED, *words))
    flagged, unflagged = tickets
    assert same_bits([flagged.masks, flagged.gem], [unflagged.gem] * 2)
    assert torch.equal(flat(unflagged.masks), epochs[-1]["after"])
    assert torch.equal(flat(unflagged.gem), scores > 0.9)
    assert int(flat(unflagged.masks).sum()) == 57 > int(flat(unflagged.gem).sum())
    assert flagged.facts["rescued"] is unflagged.facts["rescued"] is False


def test_hc_warns_that_unflagging_restores_the_dense_network(run, monkeypatch):
    scores = torch.linspace(0.01, 1.0, 228)
    with_scores(monkeypatch, scores)
    with pytest.warns(UserWarning, match="nothing was pruned for good, so that unflagging restores the dense network"):
        ticket = search(run, "--algo", "hc", *STILL, "--unflag_before_finetune", "true")
    assert flat(ticket.masks).all()
    assert torch.equal(flat(ticket.gem), scores > 0.5)


def test_a_ticket_is_a_copy_of_the_plain_networks_whole_state_with_nothing_zeroed(run):
    net, drawn = Toy(), Toy()
    ticket = search(run, *QUANTIZED, *BOTTOM_K, "--unflag_before_finetune", "true", net=net)
    assert ticket.state.keys() == drawn.state_dict().keys()
    for name, mask in ticket.masks.items():
        assert torch.equal(ticket.state[name], drawn.state_dict()[name])
        assert (mask.dtype, mask.shape) == (torch.bool, ticket.state[name].shape)
        assert mask.any() and not mask.all()
    assert list(ticket.masks) == list(ticket.gem) == ["conv.weight", "out.weight"]
    assert torch.equal(ticket.state["norm.running_mean"], net.norm.running_mean)
    assert ticket.state["norm.num_batches_tracked"] == 6 * STEPS
    parts = (ticket.state, ticket.masks, ticket.gem)
    copies = deepcopy(parts)
    for value in net.state_dict().values():
        value.zero_()
    assert same_bits(parts, copies)
    assert flat(ticket.gem).any()


# ---- how it begins -------------------------------------------------------------------------------------------------


def test_scores_are_drawn_from_the_seed_of_the_weights_and_not_of_the_run(tmp_path, epochs):
    for number, words in enumerate([(), ("--seed", "3"), ("--seed", "3", "--fixed_init", "true"), ("--seed", "24")]):
        with opened(tmp_path / str(number)).until_stopped() as run:
            search(run, *words)
    starts = [one["start"] for one in epochs if one["epoch"] == 0]
    assert torch.equal(starts[2], starts[3])
    assert len({tuple(start.tolist()) for start in starts}) == 3
    assert all(start.min() >= 0 and start.max() < 1 for start in starts)


def test_score_init_is_the_configs_also_with_a_pretrained_file_without_scores(run, tmp_path, epochs):
    torch.save(Toy().state_dict(), tmp_path / "plain.pt")
    search(run, "--score_init", "half", "--epochs", "3", "--pretrained", str(tmp_path / "plain.pt"))
    assert epochs[0]["start"].eq(0.5).all()


PLACES = torch.arange(228)


def begun(path: Path, flags: Tensor, start: int) -> tuple[list[str], Tensor]:
    """Store a masked network with these flags: the words that go on with it from epoch `start`, and its scores."""
    trained = to_masked(Toy())
    draw_scores(trained, torch.Generator().manual_seed(99), "unif")
    whole = FlatScores(trained)
    whole.flags.copy_(flags)
    torch.save({"state_dict": trained.state_dict()}, path)
    return ["--pretrained", str(path), "--start_epoch", str(start)], whole.scores.detach()


@pytest.mark.parametrize(("flags", "start", "left"), [
    (PLACES >= 0, 3, [228, 57, 57]),  # one pruning, to the quarter, is left
    (PLACES % 2 == 1, 3, [114, 57, 57]),  # as the whole search would
    # From 210 unpruned two prunings go to a quarter of all 228, 57, where none tie; each rounds its count up.
    ((PLACES < 9) | (PLACES >= 27), 0, [210, 210, 109, 109, 56, 56]),
])  # fmt: skip
def test_a_search_goes_on_with_a_files_scores_and_flags_at_a_later_epoch(flags, start, left, run, tmp_path, epochs):
    words, scores = begun(tmp_path / "begun.pt", flags, start)
    search(run, *words, *BOTTOM_K, "--lr_policy", "multistep_lr", "--milestones", "4")
    assert torch.equal(epochs[0]["start"], scores)
    assert torch.equal(epochs[0]["start_flags"], flags)
    assert [one["epoch"] for one in epochs] == list(range(start, 6))
    assert counts(epochs) == left
    rates = [0.3 if epoch < 4 else 0.03 for epoch in range(start, 6)]
    assert [row["lr"] for row in run.rows("search")] == pytest.approx(rates)


@pytest.mark.parametrize(("kept", "start", "said"), [
    (228, 5, "the target of 25% is missed: start_epoch 5 lies after the last pruning, that of epoch 4"),
    (40, 0, "the target of 25% is missed: only 40 weights were unpruned when the search began"),
])  # fmt: skip
def test_a_target_out_of_reach_is_told_with_its_reason(kept, start, said, run, tmp_path):
    words, _ = begun(tmp_path / "begun.pt", PLACES.lt(kept), start)
    with pytest.warns(UserWarning, match=said):
        ticket = search(run, *words, *EXACT, "--unflag_before_finetune", "true", *STILL)
    assert ticket.facts["density_reason"].startswith(said.partition(": ")[2])
    assert int(flat(ticket.masks).sum()) == kept


# ---- the same again ------------------------------------------------------------------------------------------------

SEARCHES = {
    "bottom k, rewound": (*QUANTIZED, *BOTTOM_K, "--rewind_score", "true", "--rewind_to_epoch", "1"),
    "exact, probable": (*EXACT, *"--score_init bern --round prob --num_test 2 --unflag_before_finetune true".split()),
    "local, by adam": (*QUANTIZED, *LOCAL, "--optimizer", "adam", "--regularization", "L2"),
    "moving threshold": MOVING, "threshold that moves now and then": (*MOVING, "--project_freq", "4"),
    "by magnitude": (*BOTTOM_K, "--drop_bottom_half_weights", "true", "--freeze_weights", "false"),
}  # fmt: skip


def outcome(folder: Path, words: tuple[str, ...]) -> tuple:
    """The parts of a search's ticket, and its rows without their times."""
    with opened(folder).until_stopped() as run:
        ticket = search(run, *words)
        return ticket.masks, ticket.gem, ticket.state, [{**row, "seconds": 0} for row in run.rows("search")]


# In the first epoch; in the middle of epoch 1, after the snapshot; at the end of epoch 2, pruned; in epoch 3.
@pytest.mark.parametrize("number", [0, STEPS + 1, 3 * STEPS - 1, 3 * STEPS + 2])
@pytest.mark.parametrize("words", SEARCHES.values(), ids=SEARCHES.keys())
def test_a_stopped_search_goes_on_to_the_very_ticket_of_an_undisturbed_one(words, number, tmp_path, monkeypatch):
    whole, before_step, steps = outcome(tmp_path / "whole", words), GemMiner.before_step, itertools.count()

    def stopping(miner: GemMiner, step: int) -> None:
        if next(steps) == number:
            signal.raise_signal(signal.SIGTERM)
        before_step(miner, step)

    monkeypatch.setattr(GemMiner, "before_step", stopping)
    with pytest.raises(Stopped):
        outcome(tmp_path / "parts", words)
    assert same_bits(outcome(tmp_path / "parts", words), whole)
