"""The plan of a run before it is run, and the lists of what there is."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from args_helper import parse_args
from data import DATASETS
from models import MODELS
from models.build import build_model
from models.masking import masked_layers, to_masked
from tests.conftest import PROJECT, SMALL, Outcome, read_rows
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.edge_popup import EdgePopup
from trainers.dry_run import Timing, _costs, _prunings
from utils.masks import ceil_count
from utils.schedules import pruning_epochs

Call = Callable[..., Outcome]


def test_a_plan_tells_layers_prunings_time_and_memory_and_leaves_nothing(
    call: Call, places: list[str], tmp_path: Path
) -> None:
    outcome = call(*SMALL, *places, "--dry_run")
    assert outcome.code == 0, outcome.err
    assert f"run folder   {tmp_path}/results/trial_1 (not there yet)" in outcome.out
    assert "1,294 train, 143 val, 360 test, 1×8×8, 10 classes" in outcome.out
    assert re.search(r"conv1\.weight +4×1×3×3 +36\n", outcome.out)
    assert re.search(r"weights +16,900 +of which 3,380 are to remain \(20%\)", outcome.out)
    assert [int(epoch) for epoch in re.findall(r"after epoch (\d)", outcome.out)] == list(pruning_epochs(4, 1))
    assert re.search(r"search +4 epochs of 6 steps at [\d.]+ ms and [\d.]+ s of evaluation", outcome.out)
    assert re.search(r"checks +6 epochs of 6 steps", outcome.out)
    assert re.search(r"memory +[\d,]+ MiB", outcome.out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algo", sorted({*ALGORITHMS} - {"given", "imp"}))
def test_every_algorithm_can_be_planned(algo: str, call: Call, places: list[str]) -> None:
    outcome = call(*SMALL, *places, "--arch", "FC", "--hidden_size", 20, "--algo", algo, "--dry_run")
    assert outcome.code == 0, outcome.err
    assert "all of it    about" in outcome.out


def test_the_weights_a_plan_promises_are_those_of_the_rounds(call: Call, places: list[str], tmp_path: Path) -> None:
    words = [*SMALL, *places, "--algo", "imp", "--prune_rate", 0.4, "--skip_sanity_checks", "--target_sparsity", 10]
    planned = re.findall(r"before round (\d) +[\d,]+ +([\d.]+)%", call(*words, "--dry_run").out)
    assert call(*words).code == 0
    found = read_rows(tmp_path / "results" / "trial_1" / "rounds" / "rounds.csv")[1:]
    assert planned == [(row["round"], f"{float(row['weights_remaining_percent']):.3f}") for row in found]


def test_the_prunings_of_a_gradual_search_end_at_the_target() -> None:
    for prune_type, last in (("ExactBottomK", "1,000"), ("BottomK", "997")):
        words = f"--epochs 150 --target_sparsity 1 --prune_type {prune_type}"
        assert list(_prunings(parse_args(words.split()), 100_000, 100_000))[-1].split()[3] == last
    assert "however many these are" in next(_prunings(parse_args(["--epochs", "10"]), 100, 100))


def test_the_plan_of_a_search_that_begins_late_goes_by_what_is_left() -> None:
    words = "--epochs 30 --iter_period 5 --start_epoch 20 --target_sparsity 1 --prune_type BottomK"
    _, first, last = _prunings(parse_args(words.split()), 10_000, 400)  # after epochs 20 and 25, by a half each
    assert (first.split()[2:4], last.split()[2:4]) == (["20", "200"], ["25", "100"])
    [none] = _prunings(parse_args([*words.split(), "--start_epoch", "26"]), 10_000, 400)
    assert none == "prunings     none: start_epoch 26 lies after that of epoch 25"


def test_the_plan_reads_the_flags_of_a_pretrained_file(call: Call, places: list[str], tmp_path: Path) -> None:
    masked = to_masked(build_model(parse_args([*SMALL])))
    for layer in masked_layers(masked).values():
        layer.flag.flatten()[::2] = False
    torch.save({"state_dict": masked.state_dict()}, tmp_path / "begun.pt")
    words = [*SMALL, *places, "--prune_type", "ExactBottomK", "--epochs", 4, "--start_epoch", 2, "--dry_run"]
    planned = call(*words, "--pretrained", tmp_path / "begun.pt").out
    shares = [float(one) for one in re.findall(r"after epoch \d +[\d,]+ +([\d.]+)%", planned)]
    assert shares == pytest.approx([50 * 0.4**0.5, 20], abs=0.02)  # from 50% in play to the 20% of SMALL


@pytest.mark.parametrize("start", [0, 20])
def test_the_prunings_planned_for_global_edge_popup_are_those_it_makes(start: int) -> None:
    words = f"--algo global_ep_iter --epochs 50 --iter_period 5 --iter_start {start} --target_sparsity 20"
    config = parse_args(words.split())
    search = EdgePopup(to_masked(build_model(config)), config)
    _, *lines = _prunings(config, 10_000, 10_000)
    planned = {int(when): int(left.replace(",", "")) for _, _, when, left, _ in map(str.split, lines)}
    kept = [10_000 - ceil_count(search.pruned_fraction(epoch), 10_000) for epoch in range(51)]
    changes = {epoch: left for epoch, left in enumerate(kept) if epoch == 0 or left != kept[epoch - 1]}
    assert planned == changes
    assert list(planned.values())[-1] == 2_000


def test_what_a_run_costs_is_the_sum_over_its_stages() -> None:
    class Data:
        train = range(10)  # steps

    config = parse_args("--epochs 100 --fine_tune_epochs 50 --num_trial 3".split())
    lines = list(_costs(config, Data, Timing(search=0.1, scoring=0.0, weights=0.05, evaluation=1.0)))
    assert lines[0].endswith("100 epochs of 10 steps at 100.0 ms and 1.00 s of evaluation: 3 min")  # 200 s
    assert lines[1].endswith("50 epochs of 10 steps at 50.0 ms and 1.00 s of evaluation: 75.0 s")
    assert lines[2].startswith("checks       150 epochs")  # 225 s
    assert lines[3].startswith("all of it    about 8 min a trial, 25 min for 3")


def test_rounds_are_one_part_of_the_plan_and_rewinding_is_another() -> None:
    class Data:
        train = range(10)

    timing = Timing(search=0.1, scoring=0.0, weights=0.05, evaluation=1.0)
    imp = list(_costs(parse_args("--algo imp --iter_period 160 --target_sparsity 1.44".split()), Data, timing))
    assert [line.partition(" epochs")[0] for line in imp[:-1]] == ["search       3,360", "checks       480"]
    words = "--algo cts --epochs 20 --fine_tune_epochs 30 --rewind_epoch 5 --skip_sanity_checks"
    cts = list(_costs(parse_args(words.split()), Data, timing))
    assert [line.partition(" steps at")[0] for line in cts[:-1]] == [
        "rewinding    5 epochs of 10", "search       20 epochs of 10", "fine-tuning  25 epochs of 10",
    ]  # fmt: skip
    assert [re.search(r"at ([\d.]+) ms", line)[1] for line in cts[:-1]] == ["50.0", "100.0", "50.0"]


@pytest.mark.parametrize(("kind", "names"), [("algorithms", ALGORITHMS), ("models", MODELS), ("datasets", DATASETS)])
def test_lists_have_every_name_with_what_it_is(kind: str, names: dict[str, str], call: Call) -> None:
    outcome = call("--list", kind)
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    assert {name for together in lines for name in together.split(", ")} == set(names)
    assert all(text.strip().endswith((".", "else")) for text in lines.values())


def test_configs_are_listed_with_their_headers(call: Call) -> None:
    lines = [line.split(maxsplit=1) for line in call("--list", "configs").out.splitlines()]
    files = (path for path in (PROJECT / "configs").rglob("*.yml") if "measured" not in path.parts)
    assert {path for path, _ in lines} == {str(path.relative_to(PROJECT)) for path in files}
    assert all(len(text) > 10 for _, text in lines)
    assert call("--list", "model").code == 2
