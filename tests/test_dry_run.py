"""The plan of a run before it is run, and the lists of what there is."""

import re
import signal
from types import SimpleNamespace

import pytest
import torch

from args_helper import parse_args
from data import DATASETS
from models import MODELS
from models.build import build_model
from models.masking import masked_layers, to_masked
from tests.conftest import PROJECT, SMALL, read_rows
from tests.run_folders import make_run
from tests.small_sets import put_imagenet
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.edge_popup import EdgePopup
from trainers.algorithms.gem_miner import GemMiner
from trainers.dry_run import Timing, _costs, _layers, _prunings, _Timed
from utils.masks import ceil_count
from utils.run.stopping import SIGNALS


def prunings(words: str, weights: int, *unpruned: int) -> list[str]:
    return list(_prunings(parse_args(words.split()), weights, unpruned))


def numbers_left(words: str, weights: int, *sizes: int) -> list[int]:
    """The weights that each pruning leaves of a whole network, layer by layer if their sizes are given."""
    return [int(line.split()[3].replace(",", "")) for line in prunings(words, weights, *(sizes or [weights]))[1:]]


def test_a_plan_tells_layers_prunings_time_and_memory_and_leaves_nothing(done, places, tmp_path):
    out = done(*SMALL, *places, "--dry_run", "--with_dense").out
    assert f"run folder   {tmp_path}/results/trial_1 (not there yet)" in out
    for line in (
        r"images +1,294 train, 143 val, 360 test, 1×8×8, 10 classes\n", r"conv1\.weight +4×1×3×3 +36\n",
        r"weights +16,900 +of which 3,380 are to remain \(20%\)\n", r"checks +6 epochs of 6 steps",
        r"search +4 epochs of 6 steps at [\d.]+ ms and [\d.]+ s of evaluation", r"memory +[\d,]+ MiB",
        r"with_dense +also trains the dense network, unless its results are there: not counted",
    ):  # fmt: skip
        assert re.search(line, out), line
    assert re.findall(r"after epoch (\d)", out) == ["1", "2", "3"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("after", "epochs", "there"), [(90.0, 3, "finished"), (None, 3, "begun"), (90.0, 4, "taken")])
def test_a_plan_tells_whose_the_run_folder_is(done, places, tmp_path, after, epochs, there):
    make_run(tmp_path / "results" / "trial_1", after, arch="FC", algo="training", epochs=3)
    told = done(*places, "--arch", "FC", "--algo", "training", "--epochs", epochs, "--dry_run")
    assert f"results/trial_1 ({there})" in told.out
    refused = "would not start: " in told.err and "holds another experiment, which differs in: epochs 3 → 4" in told.err
    assert refused == (there == "taken")


@pytest.mark.parametrize("algo", sorted({*ALGORITHMS} - {"given", "imp"}))
def test_every_algorithm_can_be_planned(algo, done, places):
    words = ["--arch", "FC", "--hidden_size", 20, "--algo", algo, "--dry_run"]
    assert "all of it    about" in done(*SMALL, *places, *words).out


def test_the_search_is_timed_and_not_the_dense_epochs_before_it(done, places, monkeypatch):
    timed = []
    monkeypatch.setattr("trainers.dry_run.load_algorithm", lambda _: lambda *given: timed.append(given[2].rewind_epoch))
    done(*SMALL, *places, "--algo", "cts", "--rewind_epoch", "1", "--dry_run")
    assert timed == [0]


@pytest.mark.parametrize(
    ("words", "promises"),
    [("--algo snip", True), ("--algo imp --imp_rounds 2 --prune_rate 0.4", False), ("--algo training", False),
     ("--algo random_subnet --prune_rate 0.3", False), ("--algo smart_ratio --smart_ratio 0.5", False),
     ("--algo hc", False), ("--override_prune_rate --prune_rate 0.5", False), ("--imp_rounds 20", True),
     ("--algo snip --override_prune_rate", True)],
)  # fmt: skip
def test_a_plan_promises_a_target_only_where_it_decides(words, promises):
    assert any("are to remain" in line for line in _layers({"a": (4, 5)}, parse_args(words.split()))) == promises


def test_streamed_images_can_be_planned(done, places, tmp_path):
    put_imagenet(tmp_path / "images")
    words = "--dataset ImageNet --arch cResNet18 --width 0.1 --image_size 32 --batch_size 8 --workers 0".split()
    words += ["--data", tmp_path / "images", "--device", "cpu", "--compile", "off", "--dry_run"]
    assert re.search(r"images +\d+ train, \d+ val, 10 test, 3×32×32", done(*places, *words).out)


def test_no_round_is_planned_below_the_target_or_without_a_weight():
    left = numbers_left("--algo imp --iter_period 1 --prune_rate 0.05 --target_sparsity 35.8", 3392)
    assert left == sorted(left, reverse=True) and left[-1] == 1214
    assert numbers_left("--algo imp --imp_rounds 40 --prune_rate 0.5", 100)[-1] == 1
    assert numbers_left("--algo global_ep_iter --target_sparsity 0.1", 500)[-1] == 1


def test_the_weights_a_plan_promises_are_those_of_the_rounds(done, ran, places):
    words = ["--algo", "imp", "--prune_rate", 0.4, "--skip_sanity_checks", "--target_sparsity", 10]
    planned = re.findall(r"before round (\d) +[\d,]+ +([\d.]+)%", done(*SMALL, *places, *words, "--dry_run").out)
    found = read_rows(ran(*words) / "rounds" / "rounds.csv")[1:]
    assert planned == [(row["round"], f"{float(row['weights_remaining_percent']):.3f}") for row in found]


def test_the_prunings_of_a_gradual_search_end_at_the_target():
    for prune_type, last in (("ExactBottomK", 1000), ("BottomK", 997)):
        assert numbers_left(f"--epochs 150 --target_sparsity 1 --prune_type {prune_type}", 100_000)[-1] == last
    left = numbers_left("--epochs 150 --iter_period 1 --target_sparsity 0.01 --prune_type ExactBottomK", 268_048)
    assert min(left) == left[-1] == 26
    assert "however many these are" in prunings("--epochs 10", 100, 100)[0]


def test_the_plan_of_a_search_that_prunes_layer_by_layer_is_what_it_does():
    words = "--width 0.25 --epochs 8 --iter_period 1 --target_sparsity 2 --prune_type LocalBottomK"
    config = parse_args(words.split())
    search, left = GemMiner(to_masked(build_model(config)), config), []
    sizes = [layer.flag.numel() for layer in masked_layers(search.network).values()]
    for epoch in range(1, 8):
        search._prune(last=epoch == 7, generator=torch.Generator())
        left.append(int(search.flat.flags.sum()))
    assert numbers_left(words, sum(sizes), *sizes) == left


def test_the_plan_of_a_search_that_begins_late_goes_by_what_is_left():
    words = "--epochs 30 --iter_period 5 --start_epoch 20 --target_sparsity 1 --prune_type BottomK"
    _, *planned = prunings(words, 10_000, 400)  # after epochs 20 and 25, by a half each
    assert [line.split()[2:4] for line in planned] == [["20", "200"], ["25", "100"]]
    none = "prunings     none: start_epoch 26 lies after that of epoch 25"
    assert prunings(f"{words} --start_epoch 26", 10_000, 400) == [none]


@pytest.mark.parametrize(
    ("words", "when"),
    [("--algo acdc --epochs 10 --acdc_phase 0.1 --start_epoch 5", ["before 7"]),
     ("--algo acdc --epochs 10 --acdc_phase 0.1 --start_epoch 4", ["before 4", "before 7"]),
     ("--algo global_ep_iter --epochs 20 --iter_period 5 --start_epoch 12", ["from 12", "from 16"])],
)  # fmt: skip
def test_a_plan_tells_no_pruning_before_the_search_begins(words, when):
    assert [" ".join(line.split()[0:3:2]) for line in prunings(words, 1000, 1000)[1:]] == when


def test_the_plan_reads_the_flags_of_a_pretrained_file(call, places, tmp_path):
    masked = to_masked(build_model(parse_args([*SMALL])))
    for layer in masked_layers(masked).values():
        layer.flag.flatten()[::2] = False
    torch.save({"state_dict": masked.state_dict()}, tmp_path / "begun.pt")
    words = [*SMALL, *places, "--prune_type", "ExactBottomK", "--start_epoch", 2, "--pretrained", tmp_path / "begun.pt"]
    shares = re.findall(r"after epoch \d +[\d,]+ +([\d.]+)%", call(*words, "--dry_run").out)
    assert list(map(float, shares)) == pytest.approx([50 * 0.4**0.5, 20], abs=0.02)  # from 50% to the 20% of SMALL


@pytest.mark.parametrize("start", [0, 20])
def test_the_prunings_planned_for_global_edge_popup_are_those_it_makes(start):
    words = f"--algo global_ep_iter --epochs 50 --iter_period 5 --iter_start {start} --target_sparsity 20"
    config = parse_args(words.split())
    search = EdgePopup(to_masked(build_model(config)), config)
    lines = map(str.split, prunings(words, 10_000, 10_000)[1:])
    planned = {int(when): int(left.replace(",", "")) for _, _, when, left, _ in lines}
    kept = [10_000 - ceil_count(search.pruned_fraction(epoch), 10_000) for epoch in range(51)]
    assert planned == {epoch: left for epoch, left in enumerate(kept) if epoch == 0 or left != kept[epoch - 1]}
    assert list(planned.values())[-1] == 2_000


@pytest.mark.parametrize(
    ("words", "parts", "whole"),
    [("--epochs 100 --fine_tune_epochs 50 --num_trial 3",
      [("search", 100, 100, 1, "3 min"), ("fine-tuning", 50, 50, 1, "75.0 s"), ("checks", 150, 50, 1, "4 min")],
      "8 min a trial, 25 min for 3"),
     ("--algo imp --iter_period 160 --target_sparsity 1.44",
      [("search", 3_360, 50, 1, "84 min"), ("checks", 480, 50, 1, "12 min")], "1 h 36 min"),
     ("--epochs 10 --fine_tune_epochs 5 --skip_sanity_checks --round prob --num_test 4",
      [("search", 10, 100, 4, "50.0 s"), ("fine-tuning", 5, 50, 1, "7.5 s")], "57.5 s"),  # each draw is evaluated
     ("--algo cts --epochs 20 --fine_tune_epochs 30 --rewind_epoch 5 --skip_sanity_checks",
      [("rewinding", 5, 50, 1, "7.5 s"), ("search", 20, 100, 1, "40.0 s"), ("fine-tuning", 25, 50, 1, "37.5 s")],
      "85.0 s")],
)  # fmt: skip
def test_what_a_run_costs_is_the_sum_over_its_stages(words, parts, whole):
    data, timing = SimpleNamespace(train=range(10)), Timing(search=0.1, scoring=0.0, weights=0.05, evaluation=1.0)
    assert list(_costs(parse_args(words.split()), data, timing)) == [
        *(f"{part:<12} {epochs:,} epochs of 10 steps at {ms:.1f} ms and {seconds}.00 s of evaluation: {clock}"
          for part, epochs, ms, seconds, clock in parts),
        f"all of it    about {whole}, by 10 timed steps of each kind",
    ]  # fmt: skip
    untimed = list(_costs(parse_args(words.split()), data, timing._replace(search=None)))
    assert ("search       too short to time: not counted here" in untimed) == ("imp" not in words)


@pytest.mark.parametrize(("kind", "names"), [("algorithms", ALGORITHMS), ("models", MODELS), ("datasets", DATASETS)])
def test_lists_have_every_name_with_what_it_is(kind, names, call):
    lines = dict(line.split("  ", 1) for line in call("--list", kind).out.splitlines())
    assert {name for together in lines for name in together.split(", ")} == set(names)
    assert all(text.strip().endswith((".", "else")) for text in lines.values())
    assert len({text.partition(": ")[2] or text for text in lines.values()}) == len(lines)


def test_configs_are_listed_with_their_headers(call):
    lines = dict(line.split(maxsplit=1) for line in call("--list", "configs").out.splitlines())
    files = (path for path in (PROJECT / "configs").rglob("*.yml") if "measured" not in path.parts)
    assert lines.keys() == {str(path.relative_to(PROJECT)) for path in files}
    assert all(len(text) > 10 and text.endswith(".") for text in lines.values())  # a whole sentence


def test_ctrl_c_ends_a_dry_run_at_once_as_there_is_nothing_to_save():
    before = [signal.getsignal(name) for name in SIGNALS]
    with _Timed(torch.device("cpu")).installed():
        assert [signal.getsignal(name) for name in SIGNALS] == before
