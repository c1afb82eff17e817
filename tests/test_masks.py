"""Prunings and counts on vectors small enough to read."""

import json
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, inf

from models.layers import TopKInLayer
from tests.toys import bools, seeded
from trainers.tickets.ticket import Ticket
from utils import masks
from utils.masks import ceil_count, floor_count, prune_exactly, prune_lowest


class OnGPU(Tensor):
    """A tensor on the CPU that says it is on a GPU, as do those that are computed from it; it has no `kthvalue`."""

    device = torch.device("cuda")
    kthvalue = None


@pytest.mark.parametrize("kind", [Tensor, OnGPU])
def test_the_kth_lowest_value_by_hand(kind):
    values = torch.tensor([3.0, -1.0, inf, -1.0, 0.5]).as_subclass(kind)
    assert [masks.kth_lowest(values, k).item() for k in range(1, 6)] == [-1.0, -1.0, 0.5, 3.0, inf]


def test_a_gpu_sorts_and_finds_the_same():
    rank = torch.randint(20, (100,), generator=seeded()).float()  # many of them tied
    unpruned = torch.rand(100, generator=seeded(2)) < 0.8
    for prune in (lambda rank: prune_lowest(rank, unpruned, 0.4), lambda rank: TopKInLayer(0.3).mask(rank, None)):
        assert torch.equal(prune(rank.as_subclass(OnGPU)).as_subclass(Tensor), prune(rank))


def test_counts_are_those_of_exact_arithmetic_on_the_decimal_that_was_written():
    naive_fails = 0
    for thousandths in (*range(0, 1001, 7), 100, 290, 1000):
        for n in (*range(0, 1001, 37), 30, 100, 1000, 268_336, 14_715_584, 25_000_000):
            exact, fraction = Fraction(thousandths, 1000) * n, thousandths / 1000
            assert (ceil_count(fraction, n), floor_count(fraction, n)) == (math.ceil(exact), math.floor(exact))
            naive_fails += math.ceil(fraction * n) != math.ceil(exact) or math.floor(fraction * n) != math.floor(exact)
    assert naive_fails > 10  # the products do round off on the wrong side: there is something to be robust against


# ---- prunings ------------------------------------------------------------------------------------------------------

FIVE, TIED = [0.5, 0.1, 0.9, 0.3, 0.7], [0.0, 0.0, 0.0, 0.4, 0.8, 0.0]


@pytest.mark.parametrize(("rank", "unpruned", "fraction", "kept"), [
    # The fraction is rounded up.
    (FIVE, "11111", 0.2, "10111"), (FIVE, "11111", 0.21, "10101"), (FIVE, "11111", 0.4, "10101"),
    # Only unpruned places count, and none comes back.
    (FIVE, "10101", 1 / 3, "00101"), (FIVE, "10011", 1 / 3, "10001"),
    # Ties at the last rank all go.
    (TIED, "111111", 0.1, "000110"), (TIED, "111110", 0.1, "000110"), ([1.0] * 4, "1111", 0.25, "0000"),
    (TIED, "001110", 0.0, "001110"), (TIED, "001110", 1.0, "000000"), (TIED, "000000", 0.5, "000000"),
    ([-0.5, -inf, 0.0, inf], "1111", 0.5, "0011"),
])  # fmt: skip
def test_the_lowest_fraction_goes(rank, unpruned, fraction, kept):
    assert torch.equal(prune_lowest(torch.tensor(rank), bools(unpruned), fraction), bools(kept))


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_what_was_given_to_prune_stays_as_it_was(fraction):
    rank, unpruned = torch.tensor(FIVE * 2), bools("1101110111")
    prune_lowest(rank, unpruned, fraction).logical_not_()
    prune_exactly(rank, unpruned, round(10 * fraction), seeded()).logical_not_()
    assert torch.equal(rank, torch.tensor(FIVE * 2))
    assert torch.equal(unpruned, bools("1101110111"))


@pytest.mark.parametrize("count", range(8))
def test_exactly_the_count_goes_lowest_first_whatever_the_ties(count):
    rank, unpruned = torch.tensor([0.2, 0.0, 0.2, 0.2, inf, 0.0, -inf, 0.0]), bools("11111011")
    for seed in range(8):  # the place out of play is no candidate for a tie
        kept = prune_exactly(rank, unpruned, count, seeded(seed))
        assert (int(kept.sum()), bool((kept & ~unpruned).any())) == (7 - count, False)
        assert sorted(rank[unpruned & ~kept].tolist()) == sorted(rank[unpruned].tolist())[:count]


def test_which_of_the_tied_places_go_is_drawn():
    rank = torch.tensor([0.3, 0.1, 0.3, 0.3, 0.8])
    gone = sum((~prune_exactly(rank, bools("11111"), 2, seeded(seed))).int() for seed in range(600)).tolist()
    assert (gone[1], gone[4]) == (600, 0)
    # 200 of 600 for each of the three tied places, within four deviations of 11.5.
    assert all(154 < gone[place] < 246 for place in (0, 2, 3))


# ---- what masks hold -----------------------------------------------------------------------------------------------

MASKS = {
    "conv.weight": bools("1100").view(2, 2), "conv.bias": bools("10"),
    "fc.weight": bools("100000").view(2, 3), "fc.bias": bools("11"),
}  # fmt: skip


def test_biases_are_not_counted_among_the_weights_and_counts_can_be_written_as_json():
    counts = '[10, 3, {"conv": [2, 4], "fc": [1, 6]}]'
    assert json.dumps([masks.total(MASKS), masks.remaining(MASKS), masks.per_layer(MASKS)]) == counts


@pytest.mark.parametrize(("name", "bias", "weight"), [
    ("a.0.conv1.weight", False, "a.0.conv1.weight"), ("a.0.conv1.bias", True, "a.0.conv1.weight"),
    ("bias.weight", False, "bias.weight"), ("unbias.bias", True, "unbias.weight"),
])  # fmt: skip
def test_a_bias_is_told_by_the_last_part_of_its_name(name, bias, weight):
    assert (masks.is_bias(name), masks.weight_beside(name)) == (bias, weight)


def test_a_masked_state_has_zeros_where_the_mask_is_off_and_all_else_as_it_was():
    state = {"conv.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bn.running_mean": torch.tensor([5.0])}
    for factors, kept in ((MASKS["conv.weight"], [[1.0, 2.0], [0.0, 0.0]]), (0.5, [[0.5, 1.0], [1.5, 2.0]])):
        masked = masks.masked_state(state, {"conv.weight": factors})
        assert {name: value.tolist() for name, value in masked.items()} == {"conv.weight": kept, "bn.running_mean": [5]}
    assert state["conv.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_an_untrained_ticket_is_judged_under_its_gem_if_it_has_one():
    gem = {"conv.weight": bools("1000").view(2, 2)}
    assert Ticket({}, MASKS, gem).untrained is gem
    assert Ticket({}, MASKS).untrained is MASKS
