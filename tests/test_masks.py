"""Prunings and counts on vectors small enough to read."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from models.layers import TopKInLayer
from trainers.tickets.ticket import Ticket
from utils.masks import (
    ceil_count,
    floor_count,
    is_bias,
    kth_lowest,
    masked_state,
    per_layer,
    prune_exactly,
    prune_lowest,
    remaining,
    total,
    weight_beside,
)


def bools(text: str) -> Tensor:
    """`1101` as a boolean vector."""
    return torch.tensor([letter == "1" for letter in text])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class OnGPU(Tensor):
    """A tensor on the CPU that says it is on a GPU, as do those that are computed from it; it has no `kthvalue`."""

    device = torch.device("cuda")
    kthvalue = None


# ---- the k-th lowest value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Tensor, OnGPU])
def test_the_kth_lowest_value_by_hand(kind):
    values = torch.tensor([3.0, -1.0, torch.inf, -1.0, 0.5]).as_subclass(kind)
    assert [kth_lowest(values, k).item() for k in range(1, 6)] == [-1.0, -1.0, 0.5, 3.0, torch.inf]
    assert kth_lowest(values, 2).shape == ()


@pytest.mark.parametrize(
    "prune",
    [lambda rank, unpruned: prune_lowest(rank, unpruned, 0.4), lambda rank, _: TopKInLayer(0.3).mask(rank, None)],
)
def test_a_gpu_sorts_and_finds_the_same(prune):
    rank = torch.randint(20, (100,), generator=seeded()).float()  # many of them tied
    unpruned = torch.rand(100, generator=seeded(2)) < 0.8
    kept = prune(rank, unpruned)
    assert torch.equal(prune(rank.as_subclass(OnGPU), unpruned).as_subclass(Tensor), kept)


# ---- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "n", "up", "down"),
    [
        (0.1, 30, 3, 3),  # 0.1 · 30 is 3.0000000000000004 in some orders of evaluation
        (0.29, 100, 29, 29),  # 28.999999999999996
        (0.07, 100, 7, 7),  # 7.000000000000001
        (0.1, 31, 4, 3),
        (0.5, 1, 1, 0),
        (0.0, 10, 0, 0),
        (1.0, 10, 10, 10),
        (0.0144, 268336, 3865, 3864),  # 3864.04
        (0.25, 0, 0, 0),
    ],
)
def test_counts_by_hand(fraction, n, up, down):
    assert (ceil_count(fraction, n), floor_count(fraction, n)) == (up, down)


def test_counts_are_those_of_exact_arithmetic_on_the_decimal_that_was_written():
    naive_fails = 0
    for thousandths in range(1, 1000, 7):
        for n in (*range(1, 1001, 37), 30, 100, 1000, 268_336, 14_715_584, 25_000_000):
            exact, fraction = Fraction(thousandths, 1000) * n, thousandths / 1000
            assert ceil_count(fraction, n) == math.ceil(exact)
            assert floor_count(fraction, n) == math.floor(exact)
            naive_fails += math.ceil(fraction * n) != math.ceil(exact) or math.floor(fraction * n) != math.floor(exact)
    assert naive_fails > 10  # the products do round off on the wrong side: there is something to be robust against


# ---- prune_lowest --------------------------------------------------------------------------------------------------


def test_the_lowest_fraction_goes_rounded_up():
    rank = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7])
    assert prune_lowest(rank, bools("11111"), 0.2).tolist() == bools("10111").tolist()
    assert prune_lowest(rank, bools("11111"), 0.21).tolist() == bools("10101").tolist()
    assert prune_lowest(rank, bools("11111"), 0.4).tolist() == bools("10101").tolist()


def test_only_places_in_play_count_and_none_comes_back():
    rank = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7])
    # Three in play, at 0.5, 0.9 and 0.7: a third of them is one, the 0.5.
    assert prune_lowest(rank, bools("10101"), 1 / 3).tolist() == bools("00101").tolist()
    # The 0.9 out of play ranks highest of all.
    assert prune_lowest(rank, bools("10011"), 1 / 3).tolist() == bools("10001").tolist()


def test_ties_at_the_last_rank_all_go():
    rank = torch.tensor([0.0, 0.0, 0.0, 0.4, 0.8, 0.0])
    assert prune_lowest(rank, bools("111111"), 0.1).tolist() == bools("000110").tolist()
    assert prune_lowest(rank, bools("111110"), 0.1).tolist() == bools("000110").tolist()
    assert prune_lowest(torch.ones(4), bools("1111"), 0.25).tolist() == bools("0000").tolist()


def test_a_fraction_of_nothing_prunes_nothing_and_all_prunes_all():
    rank = torch.tensor([0.0, 0.0, 0.4])
    assert prune_lowest(rank, bools("011"), 0.0).tolist() == bools("011").tolist()
    assert prune_lowest(rank, bools("011"), 1.0).tolist() == bools("000").tolist()
    assert prune_lowest(rank, bools("000"), 0.5).tolist() == bools("000").tolist()


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_what_was_given_to_prune_stays_as_it_was(fraction):
    rank, unpruned = torch.rand(50, generator=seeded()), torch.rand(50, generator=seeded(1)) < 0.5
    before = (rank.clone(), unpruned.clone())
    for kept in (
        prune_lowest(rank, unpruned, fraction),
        prune_exactly(rank, unpruned, round(10 * fraction), seeded()),
    ):
        kept.logical_not_()
        assert torch.equal(rank, before[0])
        assert torch.equal(unpruned, before[1])


@pytest.mark.parametrize("seed", range(5))
def test_prunings_without_ties_leave_exact_counts_and_only_shrink(seed):
    rank = torch.randperm(1000, generator=seeded(seed)).double()
    unpruned, count = torch.ones(1000, dtype=torch.bool), 1000
    for _ in range(6):
        kept = prune_lowest(rank, unpruned, 0.17)
        count -= math.ceil(Fraction(17, 100) * count)
        assert int(kept.sum()) == count
        assert not bool((kept & ~unpruned).any())
        assert rank[kept].min() > rank[unpruned & ~kept].max()
        unpruned = kept


# ---- prune_exactly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(8))
def test_exactly_the_count_goes_lowest_first_whatever_the_ties(count):
    rank = torch.tensor([0.2, 0.0, 0.2, 0.2, 0.9, 0.0, 0.5, 0.1])
    unpruned = bools("11111011")
    kept = prune_exactly(rank, unpruned, count, seeded(count))
    assert int(kept.sum()) == 7 - count
    assert not bool((kept & ~unpruned).any())
    gone = unpruned & ~kept
    if 0 < count < 7:
        assert rank[gone].max() <= rank[kept].min()


def test_which_of_the_tied_places_go_is_drawn():
    rank = torch.tensor([0.3, 0.1, 0.3, 0.3, 0.8])
    gone = torch.zeros(5)
    for seed in range(600):
        gone += ~prune_exactly(rank, bools("11111"), 2, seeded(seed))
    assert gone[1] == 600
    assert gone[4] == 0
    # 200 of 600 for each of the three tied places, within four deviations of 11.5.
    assert all(154 < times < 246 for times in gone[[0, 2, 3]].tolist())


def test_the_same_generator_draws_the_same_ties():
    rank, unpruned = torch.zeros(200), torch.ones(200, dtype=torch.bool)
    first, again, other = (prune_exactly(rank, unpruned, 90, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int(first.sum()) == int(other.sum()) == 110


def test_a_place_out_of_play_is_no_candidate_for_a_tie():
    rank = torch.zeros(6)
    for seed in range(20):
        kept = prune_exactly(rank, bools("101010"), 2, seeded(seed))
        assert int(kept.sum()) == 1
        assert not bool((kept & ~bools("101010")).any())


def test_negative_and_infinite_ranks_are_ordered_like_any():
    rank = torch.tensor([-0.5, -torch.inf, 0.0, torch.inf])
    assert prune_exactly(rank, bools("1111"), 2, seeded()).tolist() == bools("0011").tolist()
    assert prune_lowest(rank, bools("1111"), 0.5).tolist() == bools("0011").tolist()


# ---- what masks hold -----------------------------------------------------------------------------------------------

MASKS = {
    "conv.weight": bools("1100").view(2, 2),
    "conv.bias": bools("10"),
    "fc.weight": bools("100000").view(2, 3),
    "fc.bias": bools("11"),
}


def test_biases_are_not_counted_among_the_weights():
    assert total(MASKS) == 10
    assert remaining(MASKS) == 3
    assert per_layer(MASKS) == {"conv": (2, 4), "fc": (1, 6)}


def test_counts_of_masks_without_biases_are_the_same():
    masks = {name: mask for name, mask in MASKS.items() if not is_bias(name)}
    assert (total(masks), remaining(masks), per_layer(masks)) == (10, 3, {"conv": (2, 4), "fc": (1, 6)})


def test_counts_are_plain_whole_numbers_that_json_can_hold():
    kept, of = per_layer(MASKS)["conv"]
    assert [type(number) for number in (total(MASKS), remaining(MASKS), kept, of)] == [int] * 4


@pytest.mark.parametrize(
    ("name", "bias", "weight"),
    [
        ("layer1.0.conv1.weight", False, "layer1.0.conv1.weight"),
        ("layer1.0.conv1.bias", True, "layer1.0.conv1.weight"),
        ("bias.weight", False, "bias.weight"),
        ("unbias.bias", True, "unbias.weight"),
    ],
)
def test_a_bias_is_told_by_the_last_part_of_its_name(name, bias, weight):
    assert (is_bias(name), weight_beside(name)) == (bias, weight)


def test_a_masked_state_has_zeros_where_the_mask_is_off_and_all_else_as_it_was():
    state = {"conv.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bn.running_mean": torch.tensor([5.0])}
    masked = masked_state(state, {"conv.weight": MASKS["conv.weight"]})
    assert masked["conv.weight"].tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert masked["bn.running_mean"].tolist() == [5.0]
    assert state["conv.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert masked_state(state, {"conv.weight": torch.full((2, 2), 0.5)})["conv.weight"].tolist() == [[0.5, 1], [1.5, 2]]


def test_an_untrained_ticket_is_judged_under_its_gem_if_it_has_one():
    gem = {"conv.weight": bools("1000").view(2, 2)}
    assert Ticket({}, MASKS, gem).untrained is gem
    assert Ticket({}, MASKS).untrained is MASKS
    assert Ticket({}, MASKS).facts == {}
