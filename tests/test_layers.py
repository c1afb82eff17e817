"""Masked layers and the rules by which scores become masks, on tensors worked out by hand."""

import pytest
import torch

from models.layers import Round, Soft, SubnetLinear, TopKInLayer

# Of the four weights: one is on; one is flagged but scored under 1/2; one at 1/2 exactly; one is over it but pruned.
WEIGHT = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
SCORES = torch.tensor([[0.6, 0.4], [0.5, 0.9]])
FLAG = torch.tensor([[True, True], [True, False]])


def small_layer(rule: Round | Soft, bias: bool = False) -> SubnetLinear:
    layer = SubnetLinear(2, 2, bias=bias)
    layer.load_state_dict({"weight": WEIGHT, "scores": SCORES, "flag": FLAG}, strict=False)
    layer.rule = rule
    return layer


@pytest.mark.parametrize(("rule", "effective", "out", "of_weight", "of_image"), [
    (Round(0.5), [[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0]], [[5.0, 0.0], [0.0, 0.0]], [[5.0, 0.0]]),
    (Soft(), [[0.6, -0.8], [1.5, 0.0]], [[-7.4, 1.5]], [[3.0, 20.0], [3.5, 0.0]], [[13.5, -4.0]]),
], ids=["round", "soft"])  # fmt: skip
def test_a_rule_gives_factors_and_the_gradients_of_scores_weights_and_images(rule, effective, out, of_weight, of_image):
    layer, image = small_layer(rule), torch.tensor([[1.0, 10.0]], requires_grad=True)
    torch.testing.assert_close(layer.effective_weight(), torch.tensor(effective))
    found = layer(image)
    torch.testing.assert_close(found, torch.tensor(out))
    found.backward(torch.tensor([[5.0, 7.0]]))
    # g is the outer product of the output's gradient and the input, [[5, 50], [7, 70]]; a score's is g · weight · flag.
    assert layer.scores.grad.tolist() == [[5.0, -100.0], [21.0, 0.0]]
    torch.testing.assert_close(layer.weight.grad, torch.tensor(of_weight))
    torch.testing.assert_close(image.grad, torch.tensor(of_image))


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.75])
def test_a_score_at_the_threshold_is_off_and_the_next_number_above_it_is_on(threshold):
    at = torch.tensor(threshold)
    scores = torch.stack([at, torch.nextafter(at, torch.tensor(1.0)), torch.nextafter(at, torch.tensor(-1.0))])
    assert Round(threshold)(scores, torch.ones(3, dtype=torch.bool)).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_has_the_type_of_the_scores(dtype):
    scores, flag = torch.rand(3, dtype=dtype), torch.ones(3, dtype=torch.bool)
    assert Round()(scores, flag).dtype == Soft()(scores, flag).dtype == dtype


def test_a_bias_is_masked_by_scores_and_flags_of_its_own():
    layer = small_layer(Round(0.5), bias=True)
    image = torch.tensor([[1.0, 10.0]])
    layer.load_state_dict({"bias": torch.tensor([100.0, 200.0]), "bias_scores": torch.tensor([0.2, 0.8])}, strict=False)
    assert layer(image).tolist() == [[1.0, 200.0]]
    layer.bias_flag[1] = False
    out = layer(image)
    assert out.tolist() == [[1.0, 0.0]]
    out.backward(torch.tensor([[5.0, 7.0]]))
    assert layer.bias_scores.grad.tolist() == [500.0, 0.0]


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.34, 0.5, 0.99, 1.0])
def test_the_top_of_a_layer_is_what_a_stable_sort_leaves(kept):
    scores = torch.randint(-3, 4, (4, 5, 3), generator=torch.Generator().manual_seed(2)).float()  # many ties
    expected = torch.ones(60, dtype=torch.bool)
    expected[scores.abs().flatten().argsort(stable=True)[: int((1 - kept) * 60)]] = False
    assert torch.equal(TopKInLayer(kept).mask(scores, torch.ones_like(scores)).flatten(), expected)
