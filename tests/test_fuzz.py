"""What untrusted files can do: a few of the fuzzers' cases, and every defect that the fuzzers found."""

import json
import os
import pickle
import shutil
import struct
from functools import reduce
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from args_helper import parse_args
from data.decode import middle_square, read_image
from tests import fuzz
from tests.fuzz_sandbox import Place, Watch
from tests.small_sets import put_cifar
from tests.toys import complaint
from tests.untrusted_inputs import EVIL, POSTSCRIPT, bomb, bomb_png, saved
from trainers.results.run_folder import folder_of
from trainers.tickets.file import read_ticket
from utils.errors import abbreviate, printable
from utils.files import load_tensors

CASES = {"checkpoints": 12, "image folders": 25, "decoded images": 20, "summaries": 20, "run folders": 10, "packs": 20}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("untrusted_inputs"), Watch())


@pytest.mark.parametrize("hundreds", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", fuzz.FUZZERS)
def test_bad_inputs_end_in_one_message_or_work(name, hundreds, place):
    cases = 300 if hundreds else CASES.get(name, 35)
    assert fuzz.run(name, place, cases) >= cases


@pytest.mark.parametrize("code", ["import os; os.system('true')", "open('canary/owned', 'w')", "raise ValueError"])
def test_the_fuzzers_see_code_that_runs_files_that_change_and_tracebacks(code, place, monkeypatch):
    monkeypatch.setattr("main.parse_args", lambda _: exec(code))
    with pytest.raises((AssertionError, AttributeError, ValueError)):
        fuzz.try_words(place, [])
    (place.root / "work/canary/owned").unlink(missing_ok=True)


# ---- configs and command lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [("[" * 3000, "nested too deeply"), ("lr: 1 #" + "x" * 2**18, "larger than 256 KiB"),
     ("lr: !!int ''", "neither a plain value nor a list of them (int)"), ("lr: &a [*a]", "neither a plain value"),
     ("lr: 1" + ":59" * 400 + ".5", "is not a number"), ("seed: 0x" + "f" * 6000, "a number of about 7200 digits"),
     ("seed: 1e300", "is too large"), ('name: "a\\0b"', "no text"), ('name: "\\ud800"', "no text"),
     ("data: !!binary aGk=", "neither a plain value"), ("? [a]\n: 1", "is not a list of options"),
     (bomb(30, 10).rpartition("\n?")[0], "neither a plain value")],
)  # fmt: skip
def test_yaml_of_a_strangers_making_is_refused_in_short(text, said, refusal, tmp_path):
    file = tmp_path / "some.yml"
    file.write_text(text)
    told = refusal("--config", file, "--print-config")
    assert said in told and len(told) < 10_000


def test_no_config_file_is_called_after_the_folder_above(tmp_path):
    (tmp_path / "...yml").write_text("lr: 0.1\n")
    assert folder_of(parse_args(["--config", str(tmp_path / "...yml")])) == Path("results/trial_1")


def test_copies_of_checkpoints_without_end_take_no_memory() -> None:
    words = "--epochs 4000000000000 --iter_period 1 --checkpoint_at_prune --ckpt_at_fixed_epochs 3".split()
    kept = parse_args(words).kept_epochs
    assert [any(epoch in some for some in kept) for epoch in (3, 10**12, 4 * 10**12)] == [True, True, False]


@pytest.mark.parametrize("option", ["--resume", "--config", "--ticket"])
def test_a_path_that_no_system_has_is_told(option, refusal):
    assert refusal(option, "a/" * 3000, "--evaluate", "--dataset", "Digits").count("error: ") == 1


def test_a_message_has_no_signs_that_a_terminal_obeys():
    assert printable("a\x1b[2J\nb\udcff×") == "a\\x1b[2J\nb\\udcff×"
    assert len(abbreviate("x" * 10**6)) < 200 and len(abbreviate([["x" * 1000] * 1000] * 1000)) < 100_000


# ---- tickets, networks, checkpoints --------------------------------------------------------------------------------


def test_a_pipe_is_no_checkpoint_and_no_image(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for read in (load_tensors, read_image):
        assert complaint(read, tmp_path / "x.png")


def test_a_state_dict_of_tensors_without_plain_values_is_none(place):
    plain = torch.zeros(4, 64)
    nested = torch.nested.nested_tensor([plain, plain[:1]])
    quantized = torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)
    for value in (plain.to_sparse(), plain.to("meta"), nested, quantized):
        fuzz.try_file(place, saved({"linear.0.weight": value}))


@pytest.mark.parametrize(
    "header",
    [{"order": "[" * 100_000}, {"order": "[1]"}, {"facts": "[1]"}, {"about": '"x"'}, {"recipe": '{"stage": 5}'},
     {"recipe": "[1]"}],
)  # fmt: skip
def test_a_ticket_with_another_header_is_damaged(header, tmp_path):
    parts = {"state/w": torch.ones(2), "mask/w": torch.ones(2, dtype=torch.uint8)}
    save_file(parts, tmp_path / "t.safetensors", header)
    assert "is not a ticket, or is damaged" in complaint(read_ticket, tmp_path / "t.safetensors")


@pytest.mark.parametrize("about", ["[" * 100_000, "[1]", '{"options": [1]}'])
def test_options_of_a_ticket_that_are_none_are_passed_over(about, tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "t.safetensors", {"about": about})
    assert parse_args(["--ticket", str(tmp_path / "t.safetensors")]).arch == "resnet20"


def test_an_empty_tensor_of_endless_shape_is_no_ticket(place):
    text = json.dumps({"state/w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
    fuzz.try_ticket(place, struct.pack("<Q", len(text)) + text)


BUFFERS = {0: {"momentum_buffer": torch.zeros(3)}}


@pytest.mark.parametrize(
    ("at", "value"),
    [("epoch", "abc"), ("epoch", 1), ("step", 3), ("meter", [0.0]), ("rows", [{"a": 1}]), ("cost", {"epochs": 1}),
     ("training", {}), ("training network", {}), ("training over", "yes"), ("training thin", 5),
     ("training snapshot", torch.zeros(3)), ("training optimizer", {"state": BUFFERS, "param_groups": []}),
     ("training optimizer state", BUFFERS)],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_not_gone_on_from(at, value, place):
    tree = torch.load(place.search, weights_only=True)
    *above, last = at.split()
    reduce(dict.__getitem__, above, tree)[last] = value
    fuzz.try_resume(place, saved({**tree, "done": False}))


@pytest.mark.parametrize("link", ["checkpoints", ".lock", "acc_and_sparsity.csv"])
def test_a_link_out_of_a_run_folder_is_not_written_through(link, place):
    with place.fresh() as folder:
        run = shutil.copytree(place.run, folder / "results" / "trial_1")
        (run / "summary.json").unlink()
        shutil.rmtree(run / link) if (run / link).is_dir() else (run / link).unlink(missing_ok=True)
        (run / link).symlink_to(place.root / "canary" / ("" if link == "checkpoints" else "new"))
        told = place.tried("--resume", run, "--max_time", "1s", "--log_dir", folder / "runs")
        assert told.code == 2 and f"{run / link} is a link out of the run's folder" in told.err


# ---- data and results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [(POSTSCRIPT, "not a readable image"), (bomb_png(10_000, 9_000), "too large an image: 10000×9000")],
    ids=["postscript", "too many pixels"],
)
def test_an_image_that_would_run_or_grow_is_refused_by_its_header(content, said, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    assert said in complaint(read_image, tmp_path / "x.png")


@pytest.mark.parametrize("shape", [(3, 1, 60_000), (3, 60_000, 1)])
def test_a_strip_becomes_a_square_without_growing_beforehand(shape):
    assert middle_square(torch.full(shape, 7, dtype=torch.uint8), 500).unique().tolist() == [7]


def test_a_link_to_nothing_among_images_is_told(place):
    fuzz.try_images(place, ("ImageFolder", [{"a": {"0.png": "nowhere"}}] * 2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_cache_that_does_not_fit_its_files_is_made_anew(dtype, place, tmp_path):
    with safe_open(str(place.cache), framework="pt") as file:
        header = file.metadata()
    save_file({name: torch.zeros(7, 3, 8, 8, dtype=dtype) for name in ("train", "test")}, tmp_path / "c", header)
    fuzz.try_cache(place, (tmp_path / "c").read_bytes())


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_cifars_pickles_are_loaded_only_with_their_own_checksums(name, tmp_path, refusal, monkeypatch, offline):
    put_cifar(tmp_path, "CIFAR10", monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("canary").mkdir()
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(EVIL[1]))
    refusal("--evaluate", "--dataset", "CIFAR10", "--data", tmp_path, "--pretrained", "x", "--device", "cpu")
    assert not list(Path("canary").iterdir())


@pytest.mark.parametrize("label", [10, 255])
def test_labels_of_no_class_are_refused(label, place, offline):
    fuzz.try_mnist(place, ("train-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 6, label, 0, 0, 0, 0, 0])))
