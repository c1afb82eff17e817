"""Masked layers and the rules by which scores become masks, on tensors worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    BATCH_NORMS,
    FullyConnected,
    MaskedFullyConnected,
    Round,
    Soft,
    SubnetConv,
    SubnetLinear,
    TopKInLayer,
)

WEIGHT = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
SCORES = torch.tensor([[0.6, 0.4], [0.5, 0.9]])
FLAG = torch.tensor([[True, True], [True, False]])
# Of the four weights: one is on; one is flagged but scored under 1/2; one at 1/2 exactly; one is over it but pruned.


def small_layer(rule: Round | Soft, bias: bool = False) -> SubnetLinear:
    layer = SubnetLinear(2, 2, bias=bias)
    layer.weight.data.copy_(WEIGHT)
    layer.scores.data.copy_(SCORES)
    layer.flag.copy_(FLAG)
    layer.rule = rule
    return layer


def random_mask(layer: SubnetConv | SubnetLinear, seed: int = 0) -> SubnetConv | SubnetLinear:
    generator = torch.Generator().manual_seed(seed)
    for kind in ("", "bias_") if layer.bias is not None else ("",):
        scores, flag = getattr(layer, f"{kind}scores"), getattr(layer, f"{kind}flag")
        scores.data.copy_(torch.rand(scores.shape, generator=generator))
        flag.copy_(torch.rand(flag.shape, generator=generator) < 0.7)
    return layer


# ---- rules ---------------------------------------------------------------------------------------------------------


def test_round_switches_on_what_is_flagged_and_scored_over_the_threshold():
    layer = small_layer(Round(0.5))
    assert layer.effective_weight().tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert layer(torch.tensor([[1.0, 10.0]])).tolist() == [[1.0, 0.0]]


def test_soft_multiplies_by_the_scores_of_what_is_flagged():
    layer = small_layer(Soft())
    assert torch.equal(layer.effective_weight(), torch.tensor([[0.6, -0.8], [1.5, 0.0]]))
    torch.testing.assert_close(layer(torch.tensor([[1.0, 10.0]])), torch.tensor([[-7.4, 1.5]]))


@pytest.mark.parametrize("rule", [Round(0.5), Soft()], ids=["round", "soft"])
def test_the_gradient_of_a_score_is_that_of_the_effective_weight_times_weight_and_flag(rule):
    layer = small_layer(rule)
    layer(torch.tensor([[1.0, 10.0]])).backward(torch.tensor([[5.0, 7.0]]))
    # g is the outer product of the output's gradient and the input: [[5, 50], [7, 70]].
    assert layer.scores.grad.tolist() == [[5.0, -100.0], [21.0, 0.0]]


def test_a_flagged_score_under_the_threshold_still_learns():
    layer = small_layer(Round(0.95))
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.effective_weight().count_nonzero() == 0
    assert torch.equal(layer.scores.grad, WEIGHT * FLAG)


@pytest.mark.parametrize("rule", [Round(0.5), Soft()], ids=["round", "soft"])
def test_a_pruned_score_has_no_gradient_however_high_it_is(rule):
    scores = torch.tensor([1.0, 1.0], requires_grad=True)
    rule(scores, torch.tensor([True, False])).sum().backward()
    assert scores.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.75])
def test_a_score_at_the_threshold_is_off_and_the_next_number_above_it_is_on(threshold):
    at = torch.tensor(threshold)
    scores = torch.stack([at, torch.nextafter(at, torch.tensor(1.0)), torch.nextafter(at, torch.tensor(-1.0))])
    assert Round(threshold)(scores, torch.ones(3, dtype=torch.bool)).tolist() == [0.0, 1.0, 0.0]


def test_the_threshold_is_a_half_by_default():
    assert Round().threshold == 0.5
    assert SubnetLinear(2, 2).rule == Round(0.5)


def test_a_threshold_that_is_a_tensor_is_read_anew_at_every_call():
    threshold = torch.tensor(0.5)
    rule, scores, flag = Round(threshold), torch.tensor([0.3, 0.7]), torch.ones(2, dtype=torch.bool)
    before = rule(scores, flag).tolist()
    threshold.fill_(0.1)
    assert (before, rule(scores, flag).tolist()) == ([0.0, 1.0], [1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_has_the_type_of_the_scores(dtype):
    scores, flag = torch.rand(3, dtype=dtype), torch.ones(3, dtype=torch.bool)
    assert Round()(scores, flag).dtype == Soft()(scores, flag).dtype == dtype


# ---- layers --------------------------------------------------------------------------------------------------------


def test_a_bias_is_masked_by_scores_and_flags_of_its_own():
    layer = small_layer(Round(0.5), bias=True)
    layer.bias.data.copy_(torch.tensor([100.0, 200.0]))
    layer.bias_scores.data.copy_(torch.tensor([0.2, 0.8]))
    assert layer(torch.tensor([[1.0, 10.0]])).tolist() == [[1.0, 200.0]]
    layer.bias_flag.copy_(torch.tensor([True, False]))
    out = layer(torch.tensor([[1.0, 10.0]]))
    assert out.tolist() == [[1.0, 0.0]]
    out.backward(torch.tensor([[5.0, 7.0]]))
    assert layer.bias_scores.grad.tolist() == [500.0, 0.0]


def test_a_weight_that_learns_gets_the_gradient_of_its_effective_weight_where_the_mask_is_on():
    layer = small_layer(Round(0.5))
    images = torch.tensor([[1.0, 10.0]], requires_grad=True)
    layer(images).backward(torch.tensor([[5.0, 7.0]]))
    assert layer.weight.grad.tolist() == [[5.0, 0.0], [0.0, 0.0]]
    assert images.grad.tolist() == [[5.0, 0.0]]


GEOMETRIES = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (1, 2)},
    "same": {"padding": "same"},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "bias": {"bias": True},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_a_convolution_with_all_on_is_the_plain_convolution(options):
    masked = SubnetConv(4, 8, 3, **{"bias": False, **options})
    plain = nn.Conv2d(4, 8, 3, **{"bias": False, **options})
    plain.load_state_dict({name: value for name, value in masked.state_dict().items() if name in plain.state_dict()})
    images = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(masked(images), plain(images))


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("rule", [Round(0.5), Soft()], ids=["round", "soft"])
def test_a_masked_convolution_is_the_plain_one_with_its_weights_multiplied(options, rule):
    masked = random_mask(SubnetConv(4, 8, 3, **{"bias": False, **options}))
    masked.rule = rule
    plain = nn.Conv2d(4, 8, 3, **{"bias": False, **options})
    by = (lambda s: (s > 0.5).float()) if isinstance(rule, Round) else (lambda s: s)
    plain.weight.data = masked.weight.detach() * by(masked.scores.detach()) * masked.flag
    if masked.bias is not None:
        plain.bias.data = masked.bias.detach() * by(masked.bias_scores.detach()) * masked.bias_flag
    images = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(masked(images), plain(images))


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_with_all_on_is_the_plain_linear_layer(bias):
    layer = SubnetLinear(5, 3, bias=bias)
    features = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(features), F.linear(features, layer.weight, layer.bias))


def test_a_fully_connected_layer_is_a_linear_layer_on_single_pixels_masked_or_not():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, generator=generator)
    plain = FullyConnected(5, 3, 1, bias=False)
    masked = MaskedFullyConnected(5, 3, 1, bias=False)
    random_mask(masked)
    mask = (masked.scores > 0.5) & masked.flag
    for layer, factor in ((plain, 1.0), (masked, mask)):
        wanted = F.linear(features, (layer.weight * factor).flatten(1))
        torch.testing.assert_close(layer(features[:, :, None, None]).flatten(1), wanted)


@pytest.mark.parametrize("layer", [SubnetConv(2, 3, 3, bias=False), SubnetLinear(2, 3, bias=False)])
def test_without_a_bias_there_are_no_scores_or_flags_for_one(layer):
    assert layer.effective_bias() is None
    assert sorted(layer.state_dict()) == ["flag", "scores", "weight"]


@pytest.mark.parametrize("layer", [SubnetConv(2, 3, 3), SubnetLinear(2, 3)])
def test_scores_and_flags_begin_as_ones_and_flags_are_buffers_that_do_not_learn(layer):
    for kind, of in (("", layer.weight), ("bias_", layer.bias)):
        scores, flag = getattr(layer, f"{kind}scores"), getattr(layer, f"{kind}flag")
        assert torch.equal(scores, torch.ones_like(of))
        assert flag.dtype == torch.bool
        assert flag.shape == of.shape
        assert bool(flag.all())
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "bias_scores", "scores", "weight"]
    assert sorted(name for name, _ in layer.named_buffers()) == ["bias_flag", "flag"]


# ---- memory --------------------------------------------------------------------------------------------------------


def saved_storages(layer: nn.Module, images: Tensor) -> dict[int, int]:
    """Address -> bytes of all memory that autograd holds on to between the forward and the backward pass."""
    saved: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)  # so that no address is used twice
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(images).sum()
    return saved


def test_rounding_keeps_nothing_for_the_backward_pass_but_the_flags_and_one_masked_weight():
    layer = random_mask(SubnetConv(4, 8, 3, bias=False))
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 4, 6, 6, requires_grad=True)
    saved = saved_storages(layer, images)
    there_anyway = {t.untyped_storage().data_ptr() for t in (layer.weight, layer.scores, layer.flag, images)}
    assert layer.flag.untyped_storage().data_ptr() in saved
    new = [size for address, size in saved.items() if address not in there_anyway]
    assert new == [layer.weight.numel() * 4]  # the convolution's own: the weights that it ran with


# ---- batch norm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("NonAffineBatchNorm", []),
        ("AffineBatchNorm", ["weight", "bias"]),
        ("LearnedBatchNorm", ["weight", "bias"]),
    ],
)
def test_only_affine_batch_norms_have_a_scale_and_a_shift_and_begin_at_one_and_zero(name, learned):
    norm = BATCH_NORMS[name](3)
    assert [kind for kind, _ in norm.named_parameters()] == learned
    assert {"running_mean", "running_var"} <= set(norm.state_dict())
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 7 + 2
    out = norm(images)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.34, 0.5, 0.99, 1.0])
def test_the_top_of_a_layer_is_what_a_stable_sort_leaves(kept):
    scores = torch.randint(-3, 4, (4, 5, 3), generator=torch.Generator().manual_seed(2)).float()  # many ties
    expected = torch.ones(60, dtype=torch.bool)
    expected[scores.abs().flatten().argsort(stable=True)[: int((1 - kept) * 60)]] = False
    assert torch.equal(TopKInLayer(kept).mask(scores, torch.ones_like(scores)).flatten(), expected)
