"""Packed images: the same batches as from the folder, kills that lose nothing, and broken images that are all named."""

import io
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROJECT, SMALL, alone, same_bits, start
from PIL import Image
from safetensors import safe_open
from small_sets import drawn, put, put_caltech, put_imagenet, put_images, put_tiny_imagenet, put_tree
from toys import complaint

import data.packs.packing as packing
import data.packs.shards as shards
from args_helper import parse_args
from data.decode import read_image
from data.load import load_data
from data.packs.checking import image_files
from data.packs.pack import INDEX, SHARD, read_pack
from data.threads import thread_pool
from utils.errors import UserError
from utils.run.lock import locked

SETS = {
    "ImageNet": lambda root: put_imagenet(root / "above").parent,
    "TinyImageNet": put_tiny_imagenet,
    "Caltech101": lambda root: put_caltech(root, {"ant": 10, "bass": 10}).parent,
    "ImageFolder": lambda root: put_tree(root / "tree", each=20, height=16, width=16) and root / "tree",
}


def packed(source: Path, *words: str) -> Path:
    target = source.with_name("packed")
    packing.pack_folder(parse_args(["--pack", str(source), "--pack_to", str(target), *words]))
    return target


def batches(dataset: str, data: Path) -> list:
    splits = load_data(parse_args(["--dataset", dataset, "--data", str(data), *"--device cpu --workers 0".split()]))
    return [splits.spec, list(splits.train.epoch(torch.Generator().manual_seed(1))), list(splits.val or splits.test)]


def encoded(pixels, kind="JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


BROKEN = {
    "text.jpg": b"no image",
    "cut.jpg": encoded(drawn(5, 64, 64))[:1000],
    "32bit.tif": encoded(np.full((8, 8), 70000, np.int32), "TIFF"),
}


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*has .* classes, but")
@pytest.mark.parametrize("dataset", SETS)
def test_a_raw_pack_gives_the_same_batches_as_the_folder(tmp_path, dataset):
    source = SETS[dataset](tmp_path)
    assert same_bits(batches(dataset, packed(source, "--pack_raw"))[1:], batches(dataset, source)[1:])


@pytest.mark.filterwarnings("ignore:.*has .* classes, but")
def test_jpegs_that_are_small_enough_are_stored_as_they_are(tmp_path):
    source = put_imagenet(tmp_path)
    target = packed(source, "--image_size", "32")
    pack, first = read_pack(target), source / "train" / "n00000000" / "0.JPEG"
    assert pack.path(0) == target / "train" / "n00000000" / "0.JPEG"
    with safe_open(target / SHARD.format(0), "pt") as shard:
        assert bytes(shard.get_slice("images")[: first.stat().st_size].tolist()) == first.read_bytes()
    assert same_bits(batches("ImageNet", target)[1:], batches("ImageNet", source)[1:])


def test_reading_a_pack_leaves_nothing_in_memory(tmp_path):
    pack = read_pack(packed(put_imagenet(tmp_path)))
    before = sys.getallocatedblocks()
    for _ in range(1_000):
        pack.pixels(0)
    assert sys.getallocatedblocks() - before < 500


def test_longer_shorter_sides_are_resized_and_shorter_ones_are_kept(tmp_path):
    for name, size in {"wide": (90, 60), "tall": (40, 100), "small": (20, 30)}.items():
        put(tmp_path / "in" / "a" / f"{name}.png", Image.new("RGB", size, (200, 100, 50)))
    pack = read_pack(packed(tmp_path / "in", "--image_size", "32"))
    assert [pack.path(number).stem for number in range(3)] == ["small", "tall", "wide"]
    assert pack.sizes.tolist() == [[30, 20], [80, 32], [32, 48]]
    for number in range(3):
        pixels = pack.pixels(number)
        assert list(pixels.shape) == [3, *pack.sizes[number].tolist()]
        assert (pixels.double().mean((1, 2)) - torch.tensor([200, 100, 50])).abs().max() < 2


def test_a_packed_photograph_looks_as_the_original_resized(tmp_path):
    smooth = Image.fromarray(drawn(1, 8, 12)).resize((384, 256), Image.BICUBIC)
    put(tmp_path / "in" / "a" / "0.jpg", smooth, quality=98)
    found = read_pack(packed(tmp_path / "in", "--image_size", "64")).pixels(0).permute(1, 2, 0).numpy().astype(int)
    wanted = np.asarray(smooth.resize((96, 64), Image.BILINEAR)).astype(int)
    assert found.shape == wanted.shape and abs(found - wanted).mean() < 5


def test_the_statistics_are_those_of_the_training_images(tmp_path):
    pixels = put_tree(tmp_path / "in", splits=("train", "test"))["train"].double() / 255
    for unread in ("train/cat/old", "train"):
        put(tmp_path / "in" / unread / "0.png", drawn(9))
    about = read_pack(packed(tmp_path / "in", "--pack_raw")).about
    assert about.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert about.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    folders = {"test/cat": 2, "test/dog": 4, "train": 5, "train/cat": 7, "train/cat/old": 8, "train/dog": 10}
    assert (Path(about.source), about.folders) == ((tmp_path / "in").resolve(), list(folders.items()))


def test_packed_photographs_of_ones_own_are_streamed_with_their_statistics(tmp_path):
    put_tree(tmp_path / "in", each=10, height=80, width=90)
    target = packed(tmp_path / "in")
    words = ["--dataset", "ImageFolder", "--data", str(target), "--image_size", "72", "--device", "cpu"]
    splits = load_data(parse_args([*words, "--workers", "0"]))
    images, labels = next(iter(splits.train.epoch(torch.Generator())))
    assert splits.spec.mean == read_pack(target).about.mean and splits.spec.zoom
    assert images.shape[1:] == (3, 72, 72) and sorted(set(labels.tolist())) == [0, 1]


@pytest.mark.filterwarnings("ignore:.*has .* classes, but")
@pytest.mark.parametrize(
    ("dataset", "side", "asked"), [("ImageNet", 24, 256), ("TinyImageNet", 48, 64), ("ImageFolder", 8, 16)]
)
def test_images_that_packing_made_too_small_are_told_of(tmp_path, recwarn, dataset, side, asked):
    source = SETS[dataset](tmp_path)
    where = ["--dataset", dataset, "--device", "cpu", *(["--image_size", "16"] if dataset == "ImageFolder" else [])]
    load_data(parse_args([*where, "--data", str(packed(source, "--image_size", "100"))]))  # none was made smaller
    assert not [str(one.message) for one in recwarn if "packed" in str(one.message)]
    target = packed(source, "--image_size", str(side))
    with pytest.warns(match=f"packed was packed with image_size {side}, and its images are enlarged to {asked}"):
        load_data(parse_args([*where, "--data", str(target)]))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_large_jpeg_is_decoded_to_no_more_than_is_needed_packed_or_not(tmp_path, factor):
    path = put(tmp_path / "in" / "a" / "0.jpg", np.kron(drawn(1, 10, 20), np.ones((16, 16, 1), np.uint8)), quality=98)
    asked = []

    def surplus(*size):
        asked.append(size)
        return factor * 1.9

    pixels = read_pack(packed(tmp_path / "in")).pixels(0, surplus)
    assert pixels.shape == (3, 160 // factor, 320 // factor) and asked == [(160, 320)]
    assert torch.equal(pixels, read_image(path, surplus)) and set(asked) == {(160, 320)}
    with Image.open(path) as image:  # PIL's own decoder is the reference
        image.draft("RGB", (320 // factor, 160 // factor))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))


# ---- what is written -----------------------------------------------------------------------------------------------


@pytest.fixture
def three_files(tmp_path, monkeypatch):
    """A folder of ten images, four in a file."""
    monkeypatch.setattr(packing, "PER_SHARD", 4)
    put_images(tmp_path / "in", {"train/a": 5, "test/a": 5})
    return tmp_path / "in"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk have no room for the file of this name."""
    real = shards.write_atomic

    def failing(path, *rest):
        if path.name == name:
            raise UserError("the disk is full")
        real(path, *rest)

    monkeypatch.setattr(shards, "write_atomic", failing)


def test_packing_that_failed_goes_on_where_it_was(three_files, monkeypatch):
    whole = contents(packed(three_files))
    target = three_files.with_name("packed")
    for path in target.iterdir():
        path.unlink()
    with monkeypatch.context() as patched:
        fail_at(patched, SHARD.format(2))
        assert complaint(packed, three_files) == "the disk is full"
    assert sorted(contents(target)) == [SHARD.format(0), SHARD.format(1)]
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert contents(packed(three_files)) == whole
    assert before == {name: (target / name).stat().st_mtime_ns for name in before}


def test_packing_otherwise_that_fails_leaves_no_index_of_other_files(three_files, monkeypatch):
    target = packed(three_files)
    fail_at(monkeypatch, SHARD.format(1))
    assert complaint(packed, three_files, "--pack_raw") == "the disk is full"
    assert not (target / INDEX).exists()
    for dataset in SETS:
        assert "packing did not end; start it again to go on with it" in complaint(batches, dataset, target)


def test_only_files_whose_images_changed_are_written_again(three_files):
    target = packed(three_files)
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    put(three_files / "train" / "a" / "4.png", drawn(7, 8, 8))
    pack = read_pack(packed(three_files))
    after = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {SHARD.format(2), INDEX}
    assert len(pack.ends) == 10
    for name in ("train/a/4.png", "train/a/3.png", "train/a/2.png"):
        (three_files / name).unlink()
    assert len(read_pack(packed(three_files)).ends) == 7
    assert SHARD.format(2) not in contents(target)


def test_a_kill_while_packing_loses_nothing(tmp_path):
    put_images(tmp_path / "in", {"train/a": 1200, "test/a": 1200})
    words = ["--pack", tmp_path / "in", "--pack_to", tmp_path / "killed", "--workers", 1]
    process = start(*words)
    while process.poll() is None and not (tmp_path / "killed" / SHARD.format(0)).exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / INDEX).exists()
    first = (tmp_path / "killed" / SHARD.format(0)).stat().st_mtime_ns
    assert "2,400 images" in alone(*words)
    assert (tmp_path / "killed" / SHARD.format(0)).stat().st_mtime_ns == first
    assert len(read_pack(tmp_path / "killed").ends) == 2400
    assert not [path for path in (tmp_path / "killed").iterdir() if path.suffix == ".part"]


def test_a_file_of_a_pack_holds_no_more_bytes_of_the_folder_than_fit_into_memory(three_files, monkeypatch):
    sizes = [(three_files / name).stat().st_size for name in image_files(three_files)]
    monkeypatch.setattr(packing, "BYTES_PER_SHARD", sum(sizes[:3]))
    first = read_pack(packed(three_files)).first.tolist()
    assert first[:2] == [0, 3] and max(b - a for a, b in pairwise(first)) <= 4 and first[-1] == 10
    monkeypatch.setattr(packing, "BYTES_PER_SHARD", 1)
    assert read_pack(packed(three_files)).first.tolist() == [*range(11)]


def test_the_room_that_is_asked_for_is_enough_for_jpegs_that_stay_as_they_are(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(drawn(0, 32, 32), quality=98))
    size = (tmp_path / "a.jpg").stat().st_size
    for side in (0, 32):
        assert shards.likely_bytes(tmp_path / "a.jpg", shards.Storage(side, raw=False, of_train=False)) == size


def test_a_thread_that_decodes_has_one_thread_of_pytorch():
    with thread_pool(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    code = "import torch, data.threads as d; torch.set_num_threads(2); d.thread_pool(1).submit(int).result()"
    code += "; print(torch.get_num_threads())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT) == b"2\n"


def test_a_disk_with_too_little_room_is_seen_first(three_files, monkeypatch, tmp_path):
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    said = complaint(packed, three_files)
    assert re.match(r"packing 10 images into .* takes about .* GiB, and .* GiB are free", said)
    assert not (tmp_path / "packed").exists()


def test_files_of_others_in_the_target_stay(tmp_path):
    put_images(tmp_path / "in", {"a": 2})
    mine = [tmp_path / "packed" / name for name in ("images_of_mine.safetensors", ".draft.part")]
    old = [tmp_path / "packed" / name for name in (SHARD.format(7), f".{INDEX}.abc.part")]
    for path in (*mine, *old):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    packed(tmp_path / "in")
    assert [path.exists() for path in (*mine, *old)] == [True, True, False, False]


def test_one_process_at_a_time_packs_into_a_folder_and_none_into_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.run.lock.PATIENCE", 0.0)
    put_images(tmp_path / "in", {"a": 2})
    (tmp_path / "packed").mkdir()
    with locked(tmp_path / "packed"):
        assert "is in use by another process" in complaint(packed, tmp_path / "in")
    assert "is the folder to pack itself" in complaint(packed, tmp_path / "in", "--pack_to", str(tmp_path / "in"))
    assert "pack, and has images" in complaint(packed, tmp_path / "in", "--pack_to", str(tmp_path / "in" / "a"))


@pytest.mark.parametrize(("kind", "expected"), [("nothing", "no folder"), ("empty", "no images in")])
def test_a_folder_without_images_is_refused(refusal, tmp_path, kind, expected):
    if kind == "empty":
        put(tmp_path / "in" / ".hidden.png", drawn(1))
        put(tmp_path / "in" / ".git" / "a.png", drawn(1))
    assert expected in refusal("--pack", tmp_path / "in")


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_a_set_whose_classes_are_not_its_folders_is_refused(refusal, tmp_path, inner):
    put_tiny_imagenet(tmp_path, original=True)
    said = refusal("--pack", tmp_path / inner, "--pack_to", tmp_path / "packed")
    assert "val_annotations.txt names the classes of images" in said
    assert not (tmp_path / "packed").exists()


def test_links_to_folders_are_followed_but_not_round_and_round(tmp_path):
    put(tmp_path / "elsewhere" / "0.png", drawn(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    put(tmp_path / "in" / "b" / "0.png", drawn(2))
    (tmp_path / "elsewhere" / "over").symlink_to(tmp_path / "in" / "b")
    (tmp_path / "in" / "b" / "back").symlink_to(tmp_path / "elsewhere")
    assert read_pack(packed(tmp_path / "in")).about.folders == [("a", 1), ("a/over", 2), ("b", 3), ("b/back", 4)]


def test_a_relative_folder_is_packed_beside_itself(done, tmp_path, monkeypatch):
    put_images(tmp_path / "in", {"a": 2})
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    for place in (".", tmp_path / "link"):
        done("--pack", place)
    assert {path.name for path in tmp_path.iterdir()} >= {"in_packed_native", "link_packed_native"}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a"]


@pytest.mark.parametrize("mode", ["--pack", "--check_data"])
def test_a_folder_that_may_not_be_looked_into_is_named(refusal, tmp_path, monkeypatch, mode):
    put_images(tmp_path / "in", {"a": 2})

    def walk(root, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/a"))
        return []

    monkeypatch.setattr("data.packs.checking.os.walk", walk)
    assert f"cannot look into {tmp_path / 'in'}/a: Permission denied" in refusal(mode, tmp_path / "in")


# ---- images that cannot be read ------------------------------------------------------------------------------------


@pytest.fixture
def some_broken(tmp_path):
    put_tree(tmp_path / "in", each=3, height=8, width=8)
    for name, content in BROKEN.items():
        (tmp_path / "in" / "train" / "cat" / name).write_bytes(content)
    (tmp_path / "in" / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    return tmp_path / "in"


@pytest.mark.parametrize("mode", ["--pack", "--check_data"])
def test_all_broken_images_are_named_in_one_message(refusal, some_broken, mode):
    said = refusal(mode, some_broken)
    assert said.count("error:") == 1 and "4 of 16 images cannot be read" in said
    for name in (*(f"cat/{name}" for name in BROKEN), "dog/gone.png"):
        assert f"{some_broken}/train/{name}" in said
    assert not (some_broken.with_name("in_packed_native") / INDEX).exists()
    assert "cat/text.jpg is not a readable image (it is none of JPEG, PNG," in said
    assert mode == "--check_data" or "--skip_broken leaves them out" in said


def test_broken_images_are_left_out_with_a_count_when_asked_for(call, done, some_broken):
    target = some_broken.with_name("in_packed_native")
    assert "left out: 4 of 16 images" in done("--pack", some_broken, "--skip_broken").out
    assert len(read_pack(target).about.left_out) == 4
    put(some_broken / "train" / "dog" / "gone.png", drawn(6, 8, 8))  # which may have been out of reach for a while
    assert "left out: 3 of 16 images" in done("--pack", some_broken, "--skip_broken").out
    for name in BROKEN:
        (some_broken / "train" / "cat" / name).unlink()
    assert same_bits(batches("ImageFolder", target), batches("ImageFolder", packed(some_broken)))
    assert call("--check_data", some_broken).out.endswith("13 images, all can be read\n")


def test_folders_that_a_pack_lacks_are_told_of(three_files):
    (three_files / "train" / "b").mkdir()
    for path in (three_files / "test" / "a").iterdir():
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning) as caught:
        pack = read_pack(packed(three_files, "--skip_broken"))
    assert pack.about.folders == [("train/a", 5)]
    assert [str(one.message) for one in caught] == [
        f"folders without images, which a pack leaves out: {three_files}/train/b",
        f"folders without a readable image, which the pack leaves out: {three_files}/test/a",
    ]


def test_the_folder_of_a_pack_inside_the_images_is_not_told_of(three_files):
    target = three_files / "packs" / "mine"
    target.mkdir(parents=True)
    with warnings.catch_warnings(action="error"):
        assert len(image_files(three_files, without=target)) == 10


def test_a_jpeg_with_harmless_damage_is_written_anew(tmp_path):
    whole = encoded(drawn(3, 16, 16), quality=95)
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "0.jpg").write_bytes(whole[:-2] + bytes(20) + whole[-2:])
    assert read_pack(packed(tmp_path / "in")).pixels(0).shape == (3, 16, 16)


def test_pictures_of_other_kinds_are_packed_as_rgb(tmp_path):
    place = tmp_path / "in" / "a"
    put(place / "0.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    put(place / "1.jpg", Image.new("L", (8, 8), 200))
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    put(place / "2.webp", Image.new("RGB", (8, 8)), save_all=True, append_images=[white], lossless=True)
    turned = Image.new("RGB", (8, 16), (10, 200, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    put(place / "3.jpg", turned, exif=exif)
    pack = read_pack(packed(tmp_path / "in"))
    found = [pack.pixels(number).double().mean((1, 2)).round().tolist() for number in range(4)]
    assert found[0][0] > 200 and max(found[0][1:]) < 60
    assert found[1] == [200.0] * 3 and found[2] == pytest.approx([0.0] * 3, abs=3)
    assert pack.sizes.tolist() == [[8, 8], [8, 8], [8, 8], [8, 16]]


# ---- packs that are damaged ----------------------------------------------------------------------------------------


def test_a_changed_byte_is_found_by_check_data(done, refusal, three_files):
    target = packed(three_files)
    done("--check_data", target)
    shard = target / SHARD.format(1)
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(bytes(content))
    assert f"{SHARD.format(1)} changed since" in refusal("--check_data", target)
    done("--pack", three_files, "--pack_to", target)


SIZE = bytes([0xFF, 0xC0, 0, 17, 8, 0, 16, 0, 16])  # of 16×16, in the header of a JPEG


@pytest.mark.parametrize(("name", "damage"), [
    (SHARD.format(0), lambda content: None), (INDEX, lambda content: content[:-50]),
    (SHARD.format(0), lambda content: content.replace(content[content.index(b"\xff\xd8\xff") :][:200], bytes(200))),
    (SHARD.format(0), lambda content: content.replace(SIZE, SIZE[:5] + bytes([0xFF, 0xDC]) * 2)),
], ids=["a file is missing", "the index is cut off", "an image is damaged", "it is larger than it says"])  # fmt: skip
def test_a_damaged_pack_is_named_in_one_message(refusal, places, tmp_path, name, damage):
    put_tree(tmp_path / "in", each=6, height=16, width=16)
    target = packed(tmp_path / "in")
    path = target / name
    whole = path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    said = refusal(*SMALL, *places, "--dataset", "ImageFolder", "--data", target, "--image_size", "8")
    assert said.count("error:") == 1 and "pack the images anew" in said
    assert not os.path.exists(tmp_path / "results" / "trial_1" / "summary.json")


# ---- a whole run ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_imagenet_config_runs_two_epochs_on_a_packed_tree_of_twenty_classes(done, places, tmp_path):
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 200, (20, 3), dtype=np.uint8)
    for split, each in (("train", 12), ("val", 3)):
        for number in range(20 * each):
            noise = draw.integers(0, 56, (90, 120, 3), dtype=np.uint8) + colours[number % 20]
            put(tmp_path / "tree" / split / f"n{number % 20:08}" / f"{number}.JPEG", noise)
    done("--pack", tmp_path / "tree", "--image_size", 64, "--pack_to", tmp_path / "packed")
    outcome = done(
        "--config", "configs/imagenet/imagenet_resnet50_sparsity_20.yml", "--data", tmp_path / "packed", *places,
        *"--image_size 32 --epochs 2 --iter_period 1 --fine_tune_epochs 2 --batch_size 32 --workers 2".split(),
        *"--skip_sanity_checks --device cpu --threads 1".split(),
    )  # fmt: skip
    assert "Traceback" not in outcome.err and "ResNet50 on ImageNet" in outcome.out
