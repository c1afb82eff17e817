"""Image folders: what is found, how it is decoded, what is refused, and the cache beside the images."""

import os
import shutil
import warnings
import weakref

import numpy as np
import pytest
import torch
from conftest import raising, same_bits
from PIL import Image
from small_sets import drawn, put, put_tree
from toys import complaint

import data.sets.image_folder as image_folder
from args_helper import Config
from data import decoded_cache as decoded
from data import image_files
from data.decode import read_image
from data.load import load_data
from utils.errors import UserError
from utils.files import SCRATCH


def config(root, **options):
    return Config(**{"dataset": "ImageFolder", "data": str(root), "device": "cpu", "workers": 2, **options})


def load(root, **options):
    return image_folder.load(config(root, **options))


@pytest.fixture
def pixels(tmp_path):
    """The pixels of a tree of two classes with two images of 4×4 each, for training and testing."""
    return put_tree(tmp_path)


def first_of(root, image, **options):
    """Put an image in the place of the first for training; return what is read of it."""
    put(root / "train/cat/0.png", image)
    return load(root, **options).train.images[0]


def upright(pixels):
    """As `load` gives them, of (height, width, channels)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def in_colour(colour, side):
    return torch.tensor(colour).byte().view(3, 1, 1).expand(3, side, side)


def same_images(found, wanted):
    return found.dtype == torch.uint8 and torch.equal(found, wanted)


# ---- what is found -------------------------------------------------------------------------------------------------


def test_classes_are_the_folders_of_train_in_order_and_images_go_with_their_labels(tmp_path, pixels):
    with warnings.catch_warnings(action="error"):
        source = load(tmp_path)
        load(tmp_path)
    assert source.spec.classes == ("cat", "dog")
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 1, 1]
    assert same_images(source.train.images, pixels["train"]) and same_images(source.test.images, pixels["test"])


def test_a_class_may_be_missing_from_test_and_labels_do_not_move(tmp_path, pixels):
    shutil.rmtree(tmp_path / "test/cat")
    test = load(tmp_path).test
    assert test.labels.tolist() == [1, 1]
    assert same_images(test.images, pixels["test"][2:])


def test_without_val_a_tenth_of_train_is_held_out(tmp_path):
    put_tree(tmp_path, each=10)
    splits = load_data(config(tmp_path))
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (18, 2, 20)


def test_a_val_folder_is_the_validation_set_and_train_stays_whole(tmp_path):
    pixels = put_tree(tmp_path, ("train", "val", "test"), each=10)
    source, splits = load(tmp_path), load_data(config(tmp_path))
    assert same_images(source.val.images, pixels["val"])
    assert source.val.labels.tolist() == [0] * 10 + [1] * 10
    assert same_images(splits.train.images.images, pixels["train"]) and len(splits.val) == 20


def test_files_that_are_no_images_and_hidden_ones_are_left_out_and_endings_may_be_in_capitals(tmp_path, pixels):
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._0.png").write_bytes(b"what an archive leaves")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/dog/1.png").rename(tmp_path / "train/dog/1.GIF")
    put(tmp_path / "train/loose.png", drawn(1))
    source = load(tmp_path)
    assert source.spec.classes == ("cat", "dog")
    assert same_images(source.train.images, pixels["train"])


def test_images_deeper_than_a_class_and_empty_classes_are_named_in_one_warning_each(tmp_path, pixels):
    place = tmp_path / "train"
    put(place / "cat/more/9.png", drawn(1))
    put(place / "dog/a/b/9.png", drawn(2))
    (place / "dog/notes").mkdir()
    (place / "dog/notes/why.txt").write_text("no image")
    for number in range(8):
        (place / f"empty{number}").mkdir()
    with pytest.warns(UserWarning) as caught:
        source = load(tmp_path)
    assert [str(one.message) for one in caught] == [
        f"images in folders inside a class are not read: {place / 'cat/more'}, {place / 'dog/a'}",
        *(
            f"classes without images: {', '.join(f'{split}/empty{number}' for number in range(6))} and 2 more"
            for split in (place, tmp_path / "test")
        ),
    ]
    assert source.train.labels.tolist() == [0, 0, 1, 1] and same_images(source.train.images, pixels["train"])


LAYOUT = "an ImageFolder has train/<class>/*.jpg, test/<class>/*.jpg and, if you like, val/<class>/*.jpg under --data"
NOWHERE = "there is no folder {}; " + LAYOUT
STRANGE = "the class 'dogs' is in {} but not in train/; did you mean 'dog'?"
SINGLE = "{} has one class only, 'cat': a network tells two or more apart"


@pytest.mark.parametrize(
    ("split", "moved", "to", "says"),
    [("train", "", "Train", NOWHERE.replace("; an", "; rename TOP/Train to it; an")),
     ("train", "", "away", NOWHERE), ("test", "", "away", NOWHERE), ("val", "dog", "val/dogs", STRANGE),
     ("test", "dog", "test/dogs", STRANGE), ("train", "dog", "train/.dog", SINGLE)],
)  # fmt: skip
def test_a_folder_that_is_missing_or_of_no_class_is_named(tmp_path, split, moved, to, says):
    put_tree(tmp_path, ("train", "val", "test"))
    (tmp_path / split / moved).rename(tmp_path / to)
    assert complaint(load, tmp_path) == says.format(tmp_path / split).replace("TOP", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "meant"), [("validation", "val"), ("dev", "val"), ("Valid", "val"), ("more", None), (".val", "hidden")]
)
def test_a_folder_beside_the_splits_is_told_to_be_unread_with_the_split_it_may_be(tmp_path, name, meant):
    put_tree(tmp_path, ("train", "test", name))
    with warnings.catch_warnings(record=True, action="always") as caught:
        load(tmp_path)
    hint = f"; did you mean '{meant}'?" if meant else ""
    assert [str(one.message) for one in caught] == [f"{tmp_path / name} is not read{hint}"] * (meant != "hidden")


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_a_folder_without_images_is_named(tmp_path, empty):
    put_tree(tmp_path, ("train", "val", "test"))
    for path in (tmp_path / empty).glob("*/*"):
        path.rename(path.with_suffix(".txt"))
    assert complaint(load, tmp_path) == f"there are no images in {tmp_path / empty}; {LAYOUT}"


# ---- decoding ------------------------------------------------------------------------------------------------------


BITS = (
    "{0} has pixels of 32 bits (mode X), of which black and white are not known; save it with 8 or 16 bits; "
    "--check_data {0.parent.parent} names all such images"
)
SIZE = "{} is 6×5 where others are 4×4; give --image-size to bring all to one size"


@pytest.mark.parametrize(
    ("place", "image", "says"),
    [("train/dog/0.png", drawn(0, 5, 6), SIZE), ("test/cat/1.png", drawn(0, 5, 6), SIZE),
     ("train/cat/0.tiff", Image.new("I", (4, 4), 7), BITS.replace("X", "I")),
     ("train/cat/0.tiff", Image.new("F", (4, 4), 7), BITS.replace("X", "F"))],
)  # fmt: skip
def test_an_image_of_another_size_or_of_32_bits_is_refused(tmp_path, pixels, place, image, says):
    says = says.format(put(tmp_path / place, image))
    assert complaint(load, tmp_path) == says


def test_image_size_makes_squares_of_images_of_any_size(tmp_path, pixels):
    put(tmp_path / "train/cat/0.png", Image.new("RGB", (5, 9), (10, 20, 30)))
    put(tmp_path / "test/dog/0.png", Image.new("RGB", (40, 3), (40, 50, 60)))
    source = load(tmp_path, image_size=8)
    assert source.spec.shape == (3, 8, 8)
    assert source.train.images.shape == source.test.images.shape == (4, 3, 8, 8)
    assert same_images(source.train.images[0], in_colour((10, 20, 30), 8))
    assert same_images(source.test.images[2], in_colour((40, 50, 60), 8))


@pytest.mark.parametrize("turned", [(0, 1, 2), (1, 0, 2)], ids=["wide", "tall"])
def test_the_shorter_side_becomes_image_size_and_the_middle_is_taken(tmp_path, pixels, turned):
    image = drawn(7, 4, 10)
    found = first_of(tmp_path, image.transpose(turned), image_size=4)
    assert same_images(found, upright(image[:, 3:7].transpose(turned)))


def test_shrinking_averages_all_pixels_and_does_not_pick_some(tmp_path, pixels):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::8] = 255  # one column of eight: picking the nearest two would find black
    found = first_of(tmp_path, stripes, image_size=8)[:, 2:-2, 2:-2]
    assert found.min() > 20 and found.max() < 45  # 255 / 8 is 32


PALETTE = Image.new("P", (4, 4), 1)
PALETTE.putpalette([1, 2, 3, 200, 100, 50])
GREY_16_BITS = Image.fromarray(np.full((4, 4), 200 * 257, dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "colour"),
    [(Image.new("L", (4, 4), 77), (77, 77, 77)), (PALETTE, (200, 100, 50)), (GREY_16_BITS, (200, 200, 200)),
     (Image.new("RGBA", (4, 4), (9, 8, 7, 128)), (9, 8, 7)), (Image.new("LA", (4, 4), (60, 128)), (60, 60, 60)),
     (Image.new("1", (4, 4), 1), (255, 255, 255))],
    ids=["grey", "palette", "16-bit grey", "RGBA", "grey with alpha", "black and white"],
)  # fmt: skip
def test_images_of_every_kind_become_rgb(tmp_path, pixels, image, colour):
    assert same_images(first_of(tmp_path, image), in_colour(colour, 4))


def test_sixteen_bits_that_pil_hands_over_as_32_are_read_as_sixteen(tmp_path, pixels):
    path = (tmp_path / "train/cat/0.png").rename(tmp_path / "train/cat/0.pgm")
    path.write_bytes(b"P5 4 4 65535\n" + np.full((4, 4), 200 * 257, dtype=">u2").tobytes())
    with Image.open(path) as image:
        assert image.mode == "I"
    assert same_images(load(tmp_path).train.images[0], in_colour((200,) * 3, 4))


@pytest.mark.filterwarnings("ignore:classes without images")
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, 3), (3, 2), (8, 1)])
def test_an_image_is_turned_upright_as_its_exif_data_says_before_sizes_are_compared(tmp_path, orientation, turns):
    exif, image = Image.Exif(), drawn(5, height=6, width=4)
    exif[0x0112] = orientation
    for number in range(2):
        put(tmp_path / f"train/cat/{number}.png", image, exif=exif)
    put(tmp_path / "test/cat/0.png", np.rot90(image, turns))
    (tmp_path / "train/dog").mkdir()
    source = load(tmp_path)
    assert same_images(source.train.images, torch.stack([upright(np.rot90(image, turns))] * 2))
    assert source.spec.shape == (3, *np.rot90(image, turns).shape[:2])


DAMAGES = [lambda raw: b"", lambda raw: b"no image" * 50, lambda raw: raw[: len(raw) // 2]]


@pytest.mark.parametrize("place", ["train/cat/0.png", "train/dog/1.png", "test/cat/0.png"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("size", [0, 8])
def test_a_damaged_image_is_named(tmp_path, place, damage, size):
    put_tree(tmp_path, height=16, width=16)
    path = tmp_path / place
    path.write_bytes(damage(path.read_bytes()))
    message = complaint(load, tmp_path, image_size=size)
    assert message.startswith(f"{path} is not a readable image (")
    assert message.endswith(f"); mend or remove it; --check_data {path.parent.parent} names all such images")


def test_a_set_too_large_to_hold_decoded_is_refused(tmp_path, pixels, monkeypatch):
    assert 2**30 <= decoded.LARGEST_BYTES <= 2**34
    monkeypatch.setattr(decoded, "LARGEST_BYTES", 8 * 3 * 4 * 4)  # all splits together, not each
    assert len(load(tmp_path).train) == 4
    says = "8 images of 5×5 take more than 0 GiB decoded; give a smaller --image-size, or pack the images (--pack)"
    assert complaint(load, tmp_path, image_size=5).startswith(says)


def test_decoding_holds_no_second_copy_of_the_images(tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []

    def watched(*given):
        pixels = read_image(*given)
        alive.add(pixels)
        most.append(len(alive))
        return pixels

    pixels = put_tree(tmp_path, each=10)
    monkeypatch.setattr(image_files, "read_image", watched)
    assert torch.equal(load(tmp_path).train.images, pixels["train"])
    assert max(most) <= 5  # two workers, each about to let go of the one before


# ---- what it declares ----------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_images_channel_by_channel(tmp_path, pixels):
    for number in range(4):  # channels far apart, and test images far from training images
        put(tmp_path / f"train/cat/{number}.png", (drawn(number) // np.array([1, 3, 9])).astype(np.uint8))
    source = load(tmp_path)
    shares = source.train.images.numpy().astype(np.float64) / 255
    assert source.spec.mean == pytest.approx(shares.mean((0, 2, 3)), abs=1e-9)
    assert source.spec.std == pytest.approx(shares.std((0, 2, 3)), abs=1e-9)
    assert abs(source.spec.mean[2] - pixels["test"][:, 2].double().mean().item() / 255) > 0.1


def test_images_of_one_colour_do_not_divide_by_zero(tmp_path):
    for place in ("train/a/0.png", "train/b/0.png", "test/a/0.png"):
        put(tmp_path / place, Image.new("RGB", (4, 4), (255, 0, 51)))
    spec = load(tmp_path).spec
    assert spec.mean == pytest.approx((1.0, 0.0, 0.2))
    assert spec.std == pytest.approx((1 / 255,) * 3)


SIZES = [(32, 32, 4), (16, 40, 2), (40, 23, 2), (7, 7, 0), (64, 64, 8), (65, 64, 0), (16, 80, 0)]


@pytest.mark.parametrize(("height", "width", "pad"), SIZES)
def test_up_to_64_pixels_crops_go_to_an_eighth_of_the_shorter_side(tmp_path, height, width, pad):
    put_tree(tmp_path, each=1, height=height, width=width)
    spec = load(tmp_path).spec
    assert (spec.pad, spec.flip) == (pad, True)


# ---- the cache -----------------------------------------------------------------------------------------------------


def spoil_all(root):
    """Make all files unreadable as images, their names, sizes and times of change as before."""
    for path in root.glob("*/*/*.png"):
        found = path.stat()
        path.write_bytes(b"?" * found.st_size)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("size", [0, 3])
def test_an_unchanged_folder_is_not_decoded_again_also_when_it_is_moved(tmp_path, size):
    put_tree(tmp_path / "here", ("train", "val", "test"))
    before = load(tmp_path / "here", image_size=size)
    spoil_all(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    after = load(tmp_path / "there", image_size=size)
    assert same_bits(*([vars(getattr(one, name)) for name in ("train", "val", "test")] for one in (after, before)))
    assert after.spec == before.spec


def test_every_image_size_has_its_own_cache(tmp_path, pixels):
    for _ in range(2):
        assert load(tmp_path, image_size=2).train.images.shape == (4, 3, 2, 2)
        assert same_images(load(tmp_path).train.images, pixels["train"])
        spoil_all(tmp_path)


def test_what_an_older_version_decoded_is_not_taken(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(decoded, "DECODING", 1)
    load(tmp_path)
    monkeypatch.undo()
    spoil_all(tmp_path)
    assert "is not a readable image" in complaint(load, tmp_path)


def test_images_that_are_added_and_removed_are_seen(tmp_path, pixels):
    load(tmp_path)
    put(tmp_path / "test/cat/9.png", drawn(50))
    (tmp_path / "train/cat/0.png").unlink()
    source = load(tmp_path)
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1, 1], [0, 0, 0, 1, 1])
    assert same_images(source.train.images, pixels["train"][1:])
    assert same_images(source.test.images[[0, 1, 3, 4]], pixels["test"])
    assert same_images(source.test.images[2], upright(drawn(50)))


def test_a_renamed_image_is_seen_though_sizes_and_times_are_all_the_same(tmp_path):
    for place in ("test/a", "train/b"):
        put(tmp_path / place / "0.png", drawn(0))
    for number in range(3):
        os.utime(put(tmp_path / f"train/a/{number}.bmp", drawn(number)), ns=(10**18, 10**18))
    before = load(tmp_path).train.images
    (tmp_path / "train/a/0.bmp").rename(tmp_path / "train/a/3.bmp")
    assert torch.equal(load(tmp_path).train.images, before[[1, 2, 0, 3]])


@pytest.mark.parametrize(("kind", "later"), [("BMP", 1), ("PNG", 0)], ids=["by its time", "by its size"])
def test_a_changed_image_is_read_anew(tmp_path, pixels, kind, later):
    path = put(tmp_path / "train/dog/0.png", drawn(3), format="BMP")
    before = path.stat()
    load(tmp_path)
    put(path, np.full((4, 4, 3), 9, dtype=np.uint8), format=kind)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    # Either is enough, so the other has to be as it was.
    assert (path.stat().st_size == before.st_size) == bool(later)
    assert (load(tmp_path).train.images[2] == 9).all()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(tmp_path, pixels, damage):
    load(tmp_path)
    cache = tmp_path / ".decoded_native.safetensors"
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    left, written = (tmp_path / f".{cache.name}.{name}{SCRATCH}" for name in "xy")  # one by a process that was killed
    for path in (left, written):
        path.touch()
    os.utime(left, (10**9, 10**9))
    assert same_images(load(tmp_path).train.images, pixels["train"])
    assert cache.read_bytes() == whole and not left.exists() and written.exists()


def test_a_folder_that_cannot_be_written_to_only_warns(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(decoded, "write_atomic", raising(UserError("cannot write x: Read-only file system")))
    with pytest.warns(UserWarning, match="decoded images are not cached: cannot write x: Read-only file system"):
        assert same_images(load(tmp_path).train.images, pixels["train"])
