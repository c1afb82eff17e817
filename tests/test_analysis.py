"""Networks in files, judged and compared: by hand where a hand can do it, and through `main.py`."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Outcome, start
from torch import Tensor, nn

from args_helper import parse_args
from data.batches import PlainBatches, TrainBatches
from data.load import Splits
from data.spec import DataSpec, ImageSet
from models.masking import FlatScores, plain_state, to_masked
from models.state_files import read_state
from trainers.analysis.evaluate import nonzero_percent
from trainers.analysis.mode_connectivity import (
    barrier,
    end_factors,
    factor_path,
    loss_and_accuracy,
    masked_path,
    measured_path,
    straight_path,
)
from trainers.analysis.network_file import NetworkFile, opened_network, read_network
from trainers.analysis.rounding import hamming
from trainers.results.run_folder import resolved
from trainers.tickets.file import read_ticket
from trainers.tickets.format import write_stored
from trainers.training.batchnorm import renew_statistics
from utils.rng import derive_rng

Call = Callable[..., Outcome]
PIXEL = DataSpec(shape=(1, 1, 1), classes=("a", "b"), mean=(0.0,), std=(1.0,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(count: int) -> Splits:
    """Images of one white pixel, a 1 when normalised, all of the first class."""
    images = ImageSet(torch.full((count, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
    return Splits(PIXEL, TrainBatches(images, PIXEL, 3), None, PlainBatches(images, PIXEL))


def grey(count: int) -> Splits:
    """Images of one pixel of any grey, of two classes; one training batch has them all, so that order is nothing."""
    images = ImageSet(
        torch.randint(256, (count, 1, 1, 1), generator=generator(), dtype=torch.uint8), torch.arange(count) % 2
    )
    return Splits(PIXEL, TrainBatches(images, PIXEL, count), None, PlainBatches(images, PIXEL))


def line(weight: float) -> nn.Sequential:
    """Answers a white pixel with the logits (weight, 0)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    net[1].weight.data.copy_(torch.tensor([[weight], [0.0]]))
    return net


def scored(scores: Tensor, weights: Tensor, flags: Tensor | None = None) -> NetworkFile:
    """A file of a network of one linear layer (1, N), with these scores."""
    net = to_masked(nn.Sequential(nn.Flatten(), nn.Linear(len(scores), 1, bias=False)))
    net[1].weight.data.copy_(weights)
    net[1].scores.data.copy_(scores)
    if flags is not None:
        net[1].flag.copy_(flags)
    return NetworkFile(plain_state(net), net, FlatScores(net))


# ---- barriers and paths --------------------------------------------------------------------------------------------


def test_the_barrier_is_the_rise_above_the_line_between_the_ends():
    assert barrier([0.0, 0.5, 1.0], [1.0, 4.0, 3.0]) == (2.0, 0.5)
    assert barrier([0.0, 0.25, 0.5, 1.0], [0.0, 2.0, 2.5, 4.0]) == (1.0, 0.25)
    assert barrier([0.0, 0.5, 1.0], [1.0, 0.5, 3.0])[0] == 0.0  # a path that sags has none


def test_weights_go_straight_and_counts_stay_the_first_ones():
    first = {"weight": torch.tensor([1.0, -2.0]), "count": torch.tensor(7)}
    second = {"weight": torch.tensor([3.0, 2.0]), "count": torch.tensor(9)}
    path = straight_path(first, second)
    assert path(0.25)["weight"].tolist() == [1.5, -1.0]
    assert [int(path(t)["count"]) for t in (0.0, 0.6, 1.0)] == [7, 7, 7]


def test_a_path_begins_and_ends_with_the_very_bits_and_equal_weights_never_move():
    first, second = torch.randn(2, 1000, generator=generator())
    path = straight_path({"a": first, "b": first}, {"a": second, "b": first})
    assert torch.equal(path(0.0)["a"], first)
    assert torch.equal(path(1.0)["a"], second)
    assert all(torch.equal(path(point / 10)["b"], first) for point in range(11))


def test_losses_and_accuracies_along_a_line_are_those_found_by_hand():
    net = line(0.0)
    rows = measured_path(net, straight_path(line(2.0).state_dict(), line(-1.5).state_dict()), white(7), seed=1)
    assert [row["t"] for row in rows] == [point / 10 for point in range(11)]
    for row in rows:
        weight = 2.0 - 3.5 * row["t"]
        for split in ("train", "test"):
            assert row[f"{split}_loss"] == pytest.approx(math.log(1 + math.exp(-weight)), rel=1e-5)
            assert row[f"{split}_acc"] == (100.0 if weight > 0 else 0.0)
        assert row["weights_remaining_percent"] == 50.0
    # log(1 + e^-w) is convex: on the way between any two such networks nothing rises above the line.
    assert barrier([row["t"] for row in rows], [row["test_loss"] for row in rows])[0] == pytest.approx(0, abs=1e-6)


def test_a_barrier_between_equal_networks_with_permuted_units_is_found():
    # relu(x)·2 − relu(−x)·2 at x = 1 is 2; units swapped, weights halfway are 0: the loss rises to log 2.
    one = {"up": torch.tensor([1.0, -1.0]), "out": torch.tensor([2.0, -2.0])}
    other = {name: value.flip(0) for name, value in one.items()}
    path, losses = straight_path(one, other), []
    for point in range(11):
        state = path(point / 10)
        losses.append(math.log(1 + math.exp(-float((state["up"].relu() * state["out"]).sum()))))
    height, where = barrier([point / 10 for point in range(11)], losses)
    assert where == 0.5
    assert height == pytest.approx(math.log(2) - math.log(1 + math.exp(-2)))


def test_linear_factors_are_weighed_and_drawn_ones_change_over_once():
    first, second = torch.rand(2, 10_000, generator=generator())
    assert torch.allclose(factor_path(first, second, "linear", generator())(0.3), 0.7 * first + 0.3 * second)
    path = factor_path(first, second, "prob", generator(1))
    assert torch.equal(path(0.0), first)
    assert torch.equal(path(1.0), second)
    crossed = [path(t) == second for t in (0.2, 0.5, 0.9)]
    assert all(((path(t) == first) | (path(t) == second)).all() for t in (0.2, 0.5, 0.9))
    assert not (crossed[0] & ~crossed[1]).any()
    assert not (crossed[1] & ~crossed[2]).any()
    for t, mask in zip((0.2, 0.5, 0.9), crossed):
        assert abs(int(mask.sum()) - 10_000 * t) < 5 * math.sqrt(10_000 * t * (1 - t))


@pytest.mark.parametrize(
    ("how", "expected"), [("linear", [0.25, 0.75, 0.0, 0.5]), ("round", [0, 1, 0, 0]), ("prob", None)]
)
def test_what_is_joined_at_an_end(how, expected):
    flags = torch.tensor([[True, True, False, True]]).repeat(1, 1000)
    scores = torch.tensor([0.25, 0.75, 0.9, 0.5]).repeat(1000)
    file = scored(scores, torch.ones(4000), flags)
    config = parse_args(["--how_to_connect", how, "--noise", "--noise_ratio", "1", "--num_test", "3"])
    factors = end_factors(file, config, generator())
    if expected is not None:
        assert torch.equal(factors, torch.tensor(expected).float().repeat(1000))
        return
    counts = factors.view(1000, 4).sum(0)
    assert set(factors.tolist()) == {0.0, 1.0}
    for count, chance in zip(counts.tolist(), (0.25, 0.75, 0.0, 0.5)):
        assert abs(count - 1000 * chance) <= 5 * math.sqrt(1000 * chance * (1 - chance))


def test_masks_go_their_way_over_weights_that_go_theirs():
    ones, config = torch.ones(2), parse_args("--how_to_connect linear --interpolate linear".split())
    path = masked_path(scored(ones, 2 * ones), scored(torch.tensor([1.0, 0.0]), 4 * ones), config)
    assert path(0.5)["1.weight"].tolist() == [[3.0, 1.5]]
    config = parse_args("--how_to_connect prob --interpolate prob".split())
    path = masked_path(scored(ones, 2 * ones), scored(0 * ones, 4 * ones), config)
    assert path(0.0)["1.weight"].tolist() == [[2.0, 2.0]]
    assert path(1.0)["1.weight"].tolist() == [[0.0, 0.0]]


# ---- statistics and figures ----------------------------------------------------------------------------------------


def test_renewed_statistics_are_the_means_over_all_images_of_those_of_the_batches():
    images = torch.randn(21, 1, 2, 2, generator=generator())
    batches = [(part, torch.zeros(len(part))) for part in images.split(10)]  # 10, 10 and a single one, left out
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1, affine=False, momentum=0.3))
    net[1].running_mean.fill_(99.0)
    renew_statistics(net, [*batches, (images[:5], torch.zeros(5))])
    parts = [images[:10], images[10:20], images[:5]]
    sizes = torch.tensor([10.0, 10.0, 5.0]) / 25
    mean = (sizes * torch.stack([part.mean() for part in parts])).sum()
    variance = (sizes * torch.stack([part.var() for part in parts])).sum()
    assert net[1].running_mean.item() == pytest.approx(mean.item(), abs=1e-6)
    assert net[1].running_var.item() == pytest.approx(variance.item(), rel=1e-5)
    assert net[1].momentum == 0.3
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("renew_ends", [False, True])
def test_statistics_are_renewed_within_a_path_and_at_its_ends_only_when_asked(renew_ends):
    data = grey(32)
    net = nn.Sequential(nn.BatchNorm2d(1, affine=False), *line(1.0))
    net[0].running_mean.fill_(5.0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    given = loss_and_accuracy(net, data.test)[0]
    rows = measured_path(net, lambda t: state, data, seed=1, renew_ends=renew_ends)
    renew_statistics(net, data.train.unaugmented().epoch(generator()))
    renewed = loss_and_accuracy(net, data.test)[0]
    assert abs(given - renewed) > 0.05
    ends, inner = [rows[0]["test_loss"], rows[-1]["test_loss"]], [row["test_loss"] for row in rows[1:-1]]
    assert ends == pytest.approx([renewed if renew_ends else given] * 2, rel=1e-5)
    assert inner == pytest.approx([renewed] * 9, rel=1e-5)


def test_hamming_counts_the_places_that_differ():
    mask = torch.tensor([True, True, False, False])
    assert hamming(mask, mask) == 0
    assert hamming(mask, torch.tensor([True, False, True, False])) == 2


def test_weights_that_are_not_zero_are_counted_without_biases():
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    net[0].weight.data.copy_(torch.tensor([[0.0, 1, 0, 0], [0, 0, 2, 0]]))
    assert nonzero_percent(net, net.state_dict()) == 25.0


# ---- the modes, on the files of one small run ----------------------------------------------------------------------

NETWORK = [*SMALL[: SMALL.index("--epochs")], "--threads", "1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials of a small run that share their weights."""
    root = tmp_path_factory.mktemp("analysed")
    # Long enough to be far from chance before and after fine-tuning: at 10% all networks look alike.
    own = (
        "--num_trial 2 --fixed_init --save_model --skip_sanity_checks --fine_tune_lr 0.1 --fine_tune_epochs 3 "
        "--target_sparsity 40 --epochs 8 --iter_period 3 --batch_size 64 --lr 0.3 --threads 1"
    ).split()
    process = start(*SMALL, *own, "--results_dir", root / "results", "--log_dir", root / "runs")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return root / "results"


@pytest.fixture
def analysed(call: Call, places: list[str]) -> Call:
    """Call a mode with the run's network, writing into the test's own folder; it has to end well."""

    def run(*words: object) -> Outcome:
        outcome = call(*NETWORK, *places, *words)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


def search_of(results: Path, trial: int = 1) -> Path:
    return results / f"trial_{trial}" / "checkpoints" / "search.pt"


def summary_of(results: Path, trial: int = 1) -> dict[str, object]:
    return json.loads((results / f"trial_{trial}" / "summary.json").read_text())


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def figure(out: str, label: str) -> list[float]:
    """The numbers behind a label, of all its lines."""
    lines = [text.strip().removeprefix(label) for text in out.splitlines() if text.strip().startswith(label)]
    return [float(number) for text in lines for number in re.findall(r"-?\d+\.\d+", text)]


def with_scores(results: Path, folder: Path, change: Callable[[Tensor], Tensor]) -> Path:
    """The search's network with other scores, every flag set, as a bare state_dict."""
    state = read_state(search_of(results))
    state |= {name: change(value) for name, value in state.items() if name.endswith("scores")}
    state |= {name: torch.ones_like(value) for name, value in state.items() if name.endswith("flag")}
    torch.save(state, folder / "scores.pt")
    return folder / "scores.pt"


def under_own_statistics(file: Path, mode: str, factors: Callable[[FlatScores], Tensor]) -> tuple[float, float]:
    """Test loss and accuracy of a file's network under these factors, BatchNorm's statistics estimated for it."""
    data, net = opened_network(resolved(parse_args(NETWORK)))
    found = read_network(net, str(file))
    net.load_state_dict(found.under(factors(found.flat)))
    renew_statistics(net, data.train.unaugmented().epoch(derive_rng(42, mode, "batches")))
    return loss_and_accuracy(net, data.test)


def zeros_and_ones(scores: Tensor) -> Tensor:
    return (torch.arange(scores.numel()) % 3 == 0).float().view_as(scores)


def test_evaluate_prints_what_the_run_reported_and_leaves_nothing(results, analysed, tmp_path):
    summary = summary_of(results)
    for file in (results / "trial_1" / "model.safetensors", results / "trial_1" / "checkpoints" / "finetune.pt"):
        out = analysed("-e", "--pretrained", file).out
        assert figure(out, "test accuracy") == [round(summary["test_acc_after_finetune"], 2)]
        assert figure(out, "validation accuracy") == [round(summary["val_acc_after_finetune"], 2)]
        assert figure(out, "weights remaining") == [round(summary["weights_remaining_percent"], 2)]
    out = analysed("--evaluate_only", "--pretrained", search_of(results)).out
    assert figure(out, "test accuracy") == [round(summary["test_acc_before_finetune"], 2)]
    gem_percent = 100 * summary["gem_weights_remaining"] / summary["weights_total"]
    assert figure(out, "weights remaining") == [round(gem_percent, 2)]
    assert list(tmp_path.iterdir()) == []


def test_evaluate_rounds_by_chance_as_asked(results, analysed, tmp_path):
    certain = with_scores(results, tmp_path, zeros_and_ones)
    naive = figure(analysed("-e", "--pretrained", certain).out, "test accuracy")
    out = analysed("-e", "--pretrained", certain, "--round", "prob", "--num_test", 3).out
    assert "prob, 3 draws" in out
    assert figure(out, "test accuracy") == [*naive, 0.0]  # nothing is left to chance
    third = 100 / 3
    assert figure(out, "weights remaining") == [pytest.approx(third, abs=0.1), 0.0]
    out = analysed("-e", "--pretrained", with_scores(results, tmp_path, lambda scores: 0.4 + 0 * scores),
                   "--round", "prob", "--num_test", 3).out  # fmt: skip
    mean, deviation = figure(out, "weights remaining")
    assert mean == pytest.approx(40, abs=2)
    assert 0 < deviation < 2


def test_evaluate_shows_gem_and_ticket_where_they_differ(results, analysed, tmp_path):
    stored = results / "trial_1" / "ticket.safetensors"
    summary = summary_of(results)
    out = analysed("--evaluate", "--ticket", stored).out
    assert "gem, untrained" not in out
    assert figure(out, "test accuracy") == [round(summary["test_acc_before_finetune"], 2)]
    ticket, about = read_ticket(stored)
    everything = {name: torch.ones_like(mask) for name, mask in ticket.masks.items()}
    claimed = type(ticket)(ticket.state, everything, ticket.gem)
    write_stored(tmp_path / "wide.safetensors", claimed, about)
    out = analysed("--evaluate", "--ticket", tmp_path / "wide.safetensors").out
    assert "gem, untrained" in out
    assert figure(out, "test accuracy")[0] == round(summary["test_acc_before_finetune"], 2)
    gem_percent = 100 * summary["gem_weights_remaining"] / summary["weights_total"]
    assert figure(out, "weights remaining") == [round(gem_percent, 2), 100.0]


def test_compare_rounding_of_scores_that_leave_nothing_to_chance(results, analysed, tmp_path):
    file = with_scores(results, tmp_path, zeros_and_ones)
    out = analysed("--compare_rounding", "--num_test", 2, "--name", "certain", "--pretrained", file).out
    rows = table(tmp_path / "results" / "certain" / "compare_rounding.csv")
    assert [row["draw"] for row in rows] == ["naive", "1", "2"]
    assert all(row["hamming"] == "0" for row in rows)
    assert len({(row["test_acc"], row["val_acc"]) for row in rows}) == 1
    naive = figure(analysed("-e", "--pretrained", file).out, "test accuracy")
    assert [round(float(rows[0]["test_acc"]), 2)] == naive
    _, accuracy = under_own_statistics(file, "compare_rounding", lambda flat: flat.scores.detach())
    assert [float(row["test_acc_renewed"]) for row in rows] == [accuracy] * 3
    assert "certain/compare_rounding.csv" in out


def test_compare_rounding_finds_the_distance_that_chance_expects(results, analysed, tmp_path):
    file, whole = with_scores(results, tmp_path, lambda scores: 0.3 + 0 * scores), summary_of(results)["weights_total"]
    words = ("--compare_rounding", "--num_test", 3, "--pretrained", file, "--noise", "--noise_ratio", 1)
    out = analysed(*words).out
    rows = table(tmp_path / "results" / "compare_rounding.csv")
    assert float(rows[0]["weights_remaining_percent"]) == 0  # no score above 0.5
    for row in rows[1:]:
        assert abs(int(row["hamming"]) - 0.3 * whole) < 5 * math.sqrt(0.21 * whole)
        assert float(row["hamming_percent"]) == pytest.approx(100 * int(row["hamming"]) / whole)
        assert float(row["weights_remaining_percent"]) == pytest.approx(float(row["hamming_percent"]))
    assert len({row["hamming"] for row in rows[1:]}) > 1
    counts = [int(row["hamming"]) for row in rows[1:]]
    assert figure(out, "Hamming distance")[0] == pytest.approx(sum(counts) / 3, abs=0.01)

    # The same draws once more, and nothing written over.
    before = (tmp_path / "results" / "compare_rounding.csv").read_bytes()
    analysed(*words)
    assert (tmp_path / "results" / "compare_rounding.csv").read_bytes() == before
    assert (tmp_path / "results" / "compare_rounding_2.csv").read_bytes() == before


def test_compare_rounding_counts_pruned_weights_as_off_whatever_their_scores(results, analysed, tmp_path):
    state = read_state(search_of(results))
    state |= {name: torch.ones_like(value) for name, value in state.items() if name.endswith("scores")}
    torch.save({"state_dict": state}, tmp_path / "flags.pt")
    analysed("--compare_rounding", "--pretrained", tmp_path / "flags.pt")
    rows = table(tmp_path / "results" / "compare_rounding.csv")
    unpruned = sum(int(value.sum()) for name, value in state.items() if name.endswith(".flag"))
    kept = 100 * unpruned / summary_of(results)["weights_total"]
    assert [float(row["weights_remaining_percent"]) for row in rows] == pytest.approx([kept, kept])


def test_mode_connect_joins_trained_tickets_whose_ends_are_the_files_own(results, analysed, tmp_path):
    first, second = (results / f"trial_{trial}" / "model.safetensors" for trial in (1, 2))
    out = analysed("--mode_connect", "--pretrained", first, "--pretrained2", second, "--name", "joined").out
    rows = table(tmp_path / "results" / "joined" / "mode_connect.csv")
    assert [float(row["t"]) for row in rows] == [point / 10 for point in range(11)]
    for row, trial in ((rows[0], 1), (rows[-1], 2)):
        summary = summary_of(results, trial)
        assert float(row["test_acc"]) == summary["test_acc_after_finetune"]
        assert float(row["weights_remaining_percent"]) == pytest.approx(summary["weights_remaining_percent"])
    assert float(rows[5]["weights_remaining_percent"]) > float(rows[0]["weights_remaining_percent"])
    places = [float(row["t"]) for row in rows]
    height, where = barrier(places, [float(row["test_loss"]) for row in rows])
    assert figure(out, "test loss")[4:] == [pytest.approx(height, abs=1e-4), where]
    image = (tmp_path / "results" / "joined" / "mode_connect.png").read_bytes()
    assert image.startswith(b"\x89PNG")


@pytest.mark.parametrize(("how", "interpolate"), [("round", "prob"), ("linear", "linear"), ("random", "prob")])
def test_mode_connect_joins_searches(how, interpolate, results, analysed, tmp_path):
    first, second = (search_of(results, trial) for trial in (1, 2))
    words = ("--how_to_connect", how, "--interpolate", interpolate)
    analysed("--mode_connect", "--pretrained", first, "--pretrained2", second, *words)
    rows = table(tmp_path / "results" / "mode_connect.csv")
    kept = [float(row["weights_remaining_percent"]) for row in rows]
    if how == "round":
        for row, trial in ((rows[0], 1), (rows[-1], 2)):
            assert float(row["test_acc"]) == summary_of(results, trial)["test_acc_before_finetune"]
        assert max(kept) < 1.1 * max(kept[0], kept[-1])
    elif how == "linear":  # any score that is not 0 takes part, and BatchNorm's statistics are not the file's
        assert kept[5] >= max(kept[0], kept[-1])
        loss, accuracy = under_own_statistics(first, "mode_connect", lambda flat: flat.scores.detach() * flat.flags)
        assert float(rows[0]["test_loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(rows[0]["test_acc"]) == pytest.approx(accuracy, abs=0.6)
    else:  # as many as the scores give chances of
        state, whole = read_state(first), summary_of(results)["weights_total"]
        layers = [name.removesuffix(".flag") for name in state if name.endswith(".flag")]
        chances = torch.cat([(state[f"{name}.scores"] * state[f"{name}.flag"]).flatten() for name in layers])
        assert abs(kept[0] / 100 * whole - chances.sum()) < 5 * (chances * (1 - chances)).sum().sqrt()


# ---- what cannot be used -------------------------------------------------------------------------------------------


def test_files_that_do_not_serve_are_refused_in_one_message(results, call, places, tmp_path):
    trained, search = results / "trial_1" / "model.safetensors", search_of(results)
    ticket = results / "trial_1" / "ticket.safetensors"
    signed = with_scores(results, tmp_path, lambda scores: scores - 2)
    other = tmp_path / "other.pt"
    torch.save(nn.Linear(3, 2).state_dict(), other)
    refused = [
        (("--compare_rounding", "--pretrained", trained), f"there are no scores in {trained}"),
        (("--compare_rounding", "--pretrained", signed), f"the scores in {signed} reach from -2 to"),
        (("--evaluate", "--pretrained", ticket), f"--evaluate --ticket {ticket}"),
        (("--evaluate", "--pretrained", other), f"{other} does not fit the network"),
        (("--mode_connect", "--pretrained", trained, "--pretrained2", other), f"{other} does not fit the network"),
        (
            ("--mode_connect", "--pretrained", trained, "--pretrained2", search),
            f"scores in {search} and none in {trained}",
        ),
        (
            ("--mode_connect", "--pretrained", search, "--pretrained2", trained),
            f"scores in {search} and none in {trained}",
        ),
        (("--mode_connect", "--pretrained", search, "--pretrained2", tmp_path / "no"), f"no file {tmp_path / 'no'}"),
    ]
    for words, message in refused:
        outcome = call(*NETWORK, *places, *words)
        assert outcome.code == 2
        assert outcome.err.startswith("error: ")
        assert message in outcome.err
        assert outcome.out == ""
    assert not (tmp_path / "results").exists()
