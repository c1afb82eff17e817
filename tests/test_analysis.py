"""Networks in files, judged and compared: by hand where a hand can do it, and through `main.py`."""

import math
import re

import pytest
import torch
from conftest import SMALL, read_rows, summary_of
from torch import nn
from toys import seeded

import main
from args_helper import parse_args
from data.batches import PlainBatches, TrainBatches
from data.load import Splits
from data.spec import DataSpec, ImageSet
from models.masking import FlatScores, plain_state, to_masked
from models.state_files import read_state
from trainers.analysis import mode_connectivity as paths
from trainers.analysis.evaluate import nonzero_percent
from trainers.analysis.network_file import NetworkFile, opened_network, read_network
from trainers.tickets.file import read_ticket
from trainers.tickets.format import write_stored
from trainers.training.batchnorm import renew_statistics
from utils.rng import derive_rng

PIXEL = DataSpec(shape=(1, 1, 1), classes=("a", "b"), mean=(0.0,), std=(1.0,))


def pixels(values, labels, batch_size):
    """Images of one pixel, for training in batches of this size and for testing; a white one is a 1 when normalised."""
    images = ImageSet(values.to(torch.uint8).view(-1, 1, 1, 1), labels)
    return Splits(PIXEL, TrainBatches(images, PIXEL, batch_size), None, PlainBatches(images, PIXEL))


def line(weight):
    """Answers a white pixel with the logits (weight, 0)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    net[1].weight.data.copy_(torch.tensor([[weight], [0.0]]))
    return net


def scored(scores, weight):
    """A file of a network of one linear layer (1, N), with these scores over equal weights."""
    net = to_masked(nn.Sequential(nn.Flatten(), nn.Linear(len(scores), 1, bias=False)))
    net[1].weight.data.fill_(weight)
    net[1].scores.data.copy_(torch.tensor(scores))
    return NetworkFile(plain_state(net), net, FlatScores(net))


# ---- barriers and paths --------------------------------------------------------------------------------------------


def test_the_barrier_is_the_rise_above_the_line_between_the_ends():
    assert paths.barrier([0.0, 0.5, 1.0], [1.0, 4.0, 3.0]) == (2.0, 0.5)
    assert paths.barrier([0.0, 0.25, 0.5, 1.0], [0.0, 2.0, 2.5, 4.0]) == (1.0, 0.25)
    assert paths.barrier([0.0, 0.5, 1.0], [1.0, 0.5, 3.0])[0] == 0.0  # a path that sags has none


def test_weights_go_straight_between_their_very_bits_and_counts_stay_the_first_ones():
    first, second = torch.randn(2, 1000, generator=seeded())
    begin = {"a": first, "b": first, "c": torch.tensor([1.0, -2.0]), "count": torch.tensor(7)}
    end = {"a": second, "b": first, "c": torch.tensor([3.0, 2.0]), "count": torch.tensor(9)}
    path = paths.straight_path(begin, end)
    assert torch.equal(path(0.0)["a"], first) and torch.equal(path(1.0)["a"], second)
    assert path(0.25)["c"].tolist() == [1.5, -1.0]
    assert all(torch.equal(path(t / 10)["b"], first) and path(t / 10)["count"] == 7 for t in range(11))


def test_losses_and_accuracies_along_a_line_are_those_found_by_hand():
    data = pixels(torch.full((7,), 255), torch.zeros(7, dtype=torch.int64), 3)
    path = paths.straight_path(line(2.0).state_dict(), line(-1.5).state_dict())
    rows = paths.measured_path(line(0.0), path, data, seed=1)
    assert [row["t"] for row in rows] == [point / 10 for point in range(11)]
    for row in rows:
        weight = 2.0 - 3.5 * row["t"]
        loss, accuracy = pytest.approx(math.log(1 + math.exp(-weight)), rel=1e-5), 100.0 if weight > 0 else 0.0
        assert row == {
            "t": row["t"], "weights_remaining_percent": 50.0, "train_loss": loss, "train_acc": accuracy,
            "test_loss": loss, "test_acc": accuracy,
        }  # fmt: skip


def test_linear_factors_are_weighed_and_drawn_ones_change_over_once():
    first, second = torch.rand(2, 10_000, generator=seeded())
    assert torch.allclose(paths.factor_path(first, second, "linear", seeded())(0.3), 0.7 * first + 0.3 * second)
    path, before = paths.factor_path(first, second, "prob", seeded(1)), torch.zeros(10_000, dtype=torch.bool)
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        crossed = path(t) == second
        assert torch.equal(path(t), torch.where(crossed, second, first)) and not (before & ~crossed).any()
        assert abs(int(crossed.sum()) - 10_000 * t) <= 5 * math.sqrt(10_000 * t * (1 - t))
        before = crossed


@pytest.mark.parametrize(("how", "last", "expected"), [
    ("linear", [1.0, 0.0], {0.0: [[2.0, 2.0]], 0.5: [[3.0, 1.5]], 1.0: [[4.0, 0.0]]}),
    ("prob", [0.0, 0.0], {0.0: [[2.0, 2.0]], 1.0: [[0.0, 0.0]]}),
])  # fmt: skip
def test_masks_go_their_way_over_weights_that_go_theirs(how, last, expected):
    config = parse_args(["--how_to_connect", how, "--interpolate", how])
    path = paths.masked_path(scored([1.0, 1.0], 2.0), scored(last, 4.0), config)
    assert {t: path(t)["1.weight"].tolist() for t in expected} == expected


# ---- statistics and figures ----------------------------------------------------------------------------------------


def test_renewed_statistics_are_the_means_over_all_images_of_those_of_the_batches():
    parts = torch.randn(26, 1, 2, 2, generator=seeded()).split([10, 10, 1, 5])  # the single one is left out
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1, affine=False, momentum=0.3))
    net[1].running_mean.fill_(99.0)
    renew_statistics(net, [(part, torch.zeros(len(part))) for part in parts])
    taken = [part for part in parts if len(part) > 1]
    mean, variance = (sum(len(part) * of(part).item() for part in taken) / 25 for of in (torch.mean, torch.var))
    assert net[1].running_mean.item() == pytest.approx(mean, abs=1e-6)
    assert net[1].running_var.item() == pytest.approx(variance, rel=1e-5)
    assert net[1].momentum == 0.3
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("renew_ends", [False, True])
def test_statistics_are_renewed_within_a_path_and_at_its_ends_only_when_asked(renew_ends):
    # One training batch has all images, so that their order is nothing.
    data = pixels(torch.randint(256, (32,), generator=seeded()), torch.arange(32) % 2, 32)
    net = nn.Sequential(nn.BatchNorm2d(1, affine=False), *line(1.0))
    net[0].running_mean.fill_(5.0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    given = paths.loss_and_accuracy(net, data.test)[0]
    rows = paths.measured_path(net, lambda t: state, data, seed=1, renew_ends=renew_ends)
    renew_statistics(net, data.train.epoch(seeded()))
    renewed = paths.loss_and_accuracy(net, data.test)[0]
    assert abs(given - renewed) > 0.05
    end = renewed if renew_ends else given
    assert [row["test_loss"] for row in rows] == pytest.approx([end, *[renewed] * 9, end], rel=1e-5)


def test_weights_that_are_not_zero_are_counted_without_biases():
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    net[0].weight.data.copy_(torch.tensor([[0.0, 1, 0, 0], [0, 0, 2, 0]]))
    assert nonzero_percent(net, net.state_dict()) == 25.0


# ---- the modes, on the files of one small run ----------------------------------------------------------------------

SEARCH = "checkpoints/search.pt"
NETWORK = [*SMALL[: SMALL.index("--epochs")], "--threads", "1"]


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Two trials of a small run that share their weights."""
    root = tmp_path_factory.mktemp("analysed")
    # Long enough to be far from chance before and after fine-tuning: at 10% all networks look alike.
    own = (
        "--num_trial 2 --fixed_init --save_model --skip_sanity_checks --fine_tune_lr 0.1 --fine_tune_epochs 3 "
        "--target_sparsity 40 --epochs 8 --iter_period 3 --batch_size 64 --lr 0.3 --threads 1"
    ).split()
    assert main.main([*SMALL, *own, "--results_dir", f"{root}/results", "--log_dir", f"{root}/runs"]) == 0
    return [root / "results" / f"trial_{trial}" for trial in (1, 2)]


@pytest.fixture(scope="module")
def first(trials):
    return trials[0]


@pytest.fixture
def analysed(done, places, tmp_path):
    """Call a mode with the run's network, in the test's own folder; returns what it printed and its table."""

    def run(*words):
        out = done(*NETWORK, *places, *words).out
        tables = sorted((tmp_path / "results").rglob("*.csv"))
        return out, read_rows(tables[0]) if tables else None

    return run


def gem_percent(summary):
    return 100 * summary["gem_weights_remaining"] / summary["weights_total"]


def figure(out, label):
    """The numbers behind a label, of all its lines."""
    lines = [text.strip().removeprefix(label) for text in out.splitlines() if text.strip().startswith(label)]
    return [float(number) for text in lines for number in re.findall(r"-?\d+\.\d+", text)]


def with_scores(run, folder, change, flags=torch.ones_like):
    """The search's network with other scores, every flag set, as a bare state_dict."""
    state = read_state(run / SEARCH)
    state |= {name: change(value) for name, value in state.items() if name.endswith("scores")}
    state |= {name: flags(value) for name, value in state.items() if name.endswith("flag")}
    torch.save(state, folder / "scores.pt")
    return folder / "scores.pt"


def under_own_statistics(file, mode, factors):
    """Test loss and accuracy of a file's network under these factors, BatchNorm's statistics estimated for it."""
    _, data, net = opened_network(parse_args(NETWORK))
    found = read_network(net, str(file))
    net.load_state_dict(found.under(factors(found.flat)))
    renew_statistics(net, data.train.epoch(derive_rng(42, mode, "batches")))
    return paths.loss_and_accuracy(net, data.test)


def zeros_and_ones(scores):
    return (torch.arange(scores.numel()) % 3 == 0).float().view_as(scores)


def test_evaluate_prints_what_the_run_reported_and_leaves_nothing(first, analysed, tmp_path):
    summary = summary_of(first)
    after = {
        "test accuracy": summary["test_acc_after_finetune"], "validation accuracy": summary["val_acc_after_finetune"],
        "weights remaining": summary["weights_remaining_percent"],
    }  # fmt: skip
    before = {"test accuracy": summary["test_acc_before_finetune"], "weights remaining": gem_percent(summary)}
    for name, expected in (("model.safetensors", after), ("checkpoints/finetune.pt", after), (SEARCH, before)):
        out, _ = analysed("-e", "--pretrained", first / name)
        assert all(figure(out, label) == [round(value, 2)] for label, value in expected.items())
    assert list(tmp_path.iterdir()) == []


def test_evaluate_rounds_by_chance_as_asked(first, analysed, tmp_path):
    by_chance = ("--round", "prob", "--num_test", 3)
    certain = with_scores(first, tmp_path, zeros_and_ones)
    naive = figure(analysed("-e", "--pretrained", certain)[0], "test accuracy")
    out, _ = analysed("-e", "--pretrained", certain, *by_chance)
    assert "prob, 3 draws" in out
    assert figure(out, "test accuracy") == [*naive, 0.0]  # nothing is left to chance
    assert figure(out, "weights remaining") == [pytest.approx(100 / 3, abs=0.1), 0.0]
    out, _ = analysed("-e", "--pretrained", with_scores(first, tmp_path, lambda old: 0.4 + 0 * old), *by_chance)
    mean, deviation = figure(out, "weights remaining")
    assert mean == pytest.approx(40, abs=2) and 0 < deviation < 2


def test_evaluate_shows_gem_and_ticket_where_they_differ(first, analysed, tmp_path):
    stored, summary = first / "ticket.safetensors", summary_of(first)
    accuracy = round(summary["test_acc_before_finetune"], 2)
    out, _ = analysed("--evaluate", "--ticket", stored)
    assert "gem, untrained" not in out and figure(out, "test accuracy") == [accuracy]
    ticket, about = read_ticket(stored)
    everything = {name: torch.ones_like(mask) for name, mask in ticket.masks.items()}
    write_stored(tmp_path / "wide.safetensors", type(ticket)(ticket.state, everything, ticket.gem), about)
    out, _ = analysed("--evaluate", "--ticket", tmp_path / "wide.safetensors")
    assert "gem, untrained" in out and figure(out, "test accuracy")[0] == accuracy
    assert figure(out, "weights remaining") == [round(gem_percent(summary), 2), 100.0]


def test_compare_rounding_of_scores_that_leave_nothing_to_chance(first, analysed, tmp_path):
    file = with_scores(first, tmp_path, zeros_and_ones)
    naive = figure(analysed("-e", "--pretrained", file)[0], "test accuracy")
    out, rows = analysed("--compare_rounding", "--num_test", 2, "--name", "certain", "--pretrained", file)
    assert [(row["draw"], row["hamming"]) for row in rows] == [("naive", "0"), ("1", "0"), ("2", "0")]
    assert len({(row["test_acc"], row["val_acc"]) for row in rows}) == 1
    assert [round(float(rows[0]["test_acc"]), 2)] == naive
    _, accuracy = under_own_statistics(file, "compare_rounding", lambda flat: flat.scores.detach())
    assert [float(row["test_acc_renewed"]) for row in rows] == [accuracy] * 3
    assert "certain/compare_rounding.csv" in out


def test_compare_rounding_finds_the_distance_that_chance_expects(first, analysed, tmp_path):
    file, whole = with_scores(first, tmp_path, lambda scores: 0.3 + 0 * scores), summary_of(first)["weights_total"]
    words = ("--compare_rounding", "--num_test", 3, "--pretrained", file, "--noise", "--noise_ratio", 1)
    out, (naive, *drawn) = analysed(*words)
    assert float(naive["weights_remaining_percent"]) == 0  # no score above 0.5
    counts = [int(row["hamming"]) for row in drawn]
    assert len(set(counts)) > 1 and all(abs(count - 0.3 * whole) < 5 * math.sqrt(0.21 * whole) for count in counts)
    for name in ("hamming_percent", "weights_remaining_percent"):
        assert [float(row[name]) for row in drawn] == pytest.approx([100 * count / whole for count in counts])
    assert figure(out, "Hamming distance")[0] == pytest.approx(sum(counts) / 3, abs=0.01)
    # The same draws once more, and nothing written over.
    analysed(*words)
    first, again = ((tmp_path / "results" / f"compare_rounding{end}.csv") for end in ("", "_2"))
    assert read_rows(first) == [naive, *drawn] and again.read_bytes() == first.read_bytes()


def test_compare_rounding_counts_pruned_weights_as_off_whatever_their_scores(first, analysed, tmp_path):
    file = with_scores(first, tmp_path, torch.ones_like, flags=lambda flags: flags)
    _, rows = analysed("--compare_rounding", "--pretrained", file)
    unpruned = sum(int(value.sum()) for name, value in read_state(file).items() if name.endswith(".flag"))
    kept = 100 * unpruned / summary_of(first)["weights_total"]
    assert [float(row["weights_remaining_percent"]) for row in rows] == pytest.approx([kept, kept])


def test_mode_connect_joins_trained_tickets_whose_ends_are_the_files_own(trials, analysed, tmp_path):
    one, other = (run / "model.safetensors" for run in trials)
    out, rows = analysed("--mode_connect", "--pretrained", one, "--pretrained2", other, "--name", "joined")
    t, loss, kept = ([float(row[name]) for row in rows] for name in ("t", "test_loss", "weights_remaining_percent"))
    assert t == [point / 10 for point in range(11)]
    for at, run in zip((0, -1), trials):
        assert float(rows[at]["test_acc"]) == summary_of(run)["test_acc_after_finetune"]
        assert kept[at] == pytest.approx(summary_of(run)["weights_remaining_percent"])
    assert kept[5] > kept[0]
    height, where = paths.barrier(t, loss)
    assert figure(out, "test loss")[4:] == [pytest.approx(height, abs=1e-4), where]
    assert (tmp_path / "results" / "joined" / "mode_connect.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("how", "interpolate"), [("round", "prob"), ("linear", "linear"), ("random", "prob")])
def test_mode_connect_joins_searches(how, interpolate, trials, analysed):
    one, other = (run / SEARCH for run in trials)
    words = ("--how_to_connect", how, "--interpolate", interpolate, "--noise", "--noise_ratio", 1, "--num_test", 3)
    _, rows = analysed("--mode_connect", "--pretrained", one, "--pretrained2", other, *words)
    kept = [float(row["weights_remaining_percent"]) for row in rows]
    if how == "round":
        ends = [float(rows[at]["test_acc"]) for at in (0, -1)]
        assert ends == [summary_of(run)["test_acc_before_finetune"] for run in trials]
        assert max(kept) < 1.1 * max(kept[0], kept[-1])
    elif how == "linear":  # any score that is not 0 takes part, and BatchNorm's statistics are not the file's
        assert kept[5] >= max(kept[0], kept[-1])
        loss, accuracy = under_own_statistics(one, "mode_connect", lambda flat: flat.scores.detach() * flat.flags)
        assert float(rows[0]["test_loss"]) == pytest.approx(loss, rel=1e-4)
        assert float(rows[0]["test_acc"]) == pytest.approx(accuracy, abs=0.6)
    else:  # as many as the scores give chances of
        state, whole = read_state(one), summary_of(trials[0])["weights_total"]
        scores = {name: value for name, value in state.items() if name.endswith(".scores")}
        chances = torch.cat([(value * state[name[:-6] + "flag"]).flatten() for name, value in scores.items()])
        assert abs(kept[0] / 100 * whole - chances.sum()) < 5 * (chances * (1 - chances)).sum().sqrt()


def test_scores_are_rounded_at_the_threshold_that_their_search_moved(analysed, ran):
    folder = ran("--lmbda", "auto", "--epochs", "6", "--lr", "0.01", "--skip_fine_tune", "--threads", "1")
    assert float(read_rows(folder / "acc_and_sparsity.csv")[-1]["threshold"] or 0) < 0.5  # at 0.5 it would test nothing
    out, _ = analysed("--evaluate", "--pretrained", folder / SEARCH)
    assert figure(out, "weights remaining") == [pytest.approx(gem_percent(summary_of(folder)), abs=0.01)]


# ---- what cannot be used -------------------------------------------------------------------------------------------


def test_files_that_do_not_serve_are_refused_in_one_message(first, call, places, tmp_path):
    trained, ticket, search = (first / name for name in ("model.safetensors", "ticket.safetensors", SEARCH))
    signed = with_scores(first, tmp_path, lambda scores: scores - 2)
    other, missing = tmp_path / "other.pt", tmp_path / "no"
    torch.save(nn.Linear(3, 2).state_dict(), other)
    one_sided = f"scores in {search} and none in {trained}"
    for mode, files, message in (
        ("--compare_rounding", [trained], f"there are no scores in {trained}"),
        ("--compare_rounding", [signed], f"the scores in {signed} reach from -2 to"),
        ("--evaluate", [ticket], f"--evaluate --ticket {ticket}"),
        ("--evaluate", [other], f"{other} does not fit the network"),
        ("--mode_connect", [trained, other], f"{other} does not fit the network"),
        ("--mode_connect", [trained, search], one_sided),
        ("--mode_connect", [search, trained], one_sided),
        ("--mode_connect", [search, missing], f"no file {missing}"),
    ):
        given = [word for pair in zip(("--pretrained", "--pretrained2"), files) for word in pair]
        outcome = call(*NETWORK, *places, mode, *given)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("error: ") and message in outcome.err
    assert not (tmp_path / "results").exists()
