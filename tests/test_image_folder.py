"""Image folders: what is found, how it is decoded, what is refused, and the cache beside the images."""

import os
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import data.sets.image_folder as image_folder
from args_helper import Config
from data import decoded_cache as decoded
from data.decode import read_image
from data.load import load_data
from utils.errors import UserError


def put(path, pixels, **options):
    """Write pixels, (height, width[, channels]) uint8 or a PIL image, as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def drawn(seed, height=4, width=4):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put_tree(root, splits=("train", "test"), each=2, height=4, width=4):
    """`each` images in either of two classes in every split; returns their pixels as load gives them, by split."""
    pixels = {}
    for split in splits:
        names = [f"{split}/{name}/{number}.png" for name in ("cat", "dog") for number in range(each)]
        images = [drawn(len(pixels) * 100 + seed, height, width) for seed in range(len(names))]
        for name, image in zip(names, images):
            put(root / name, image)
        pixels[split] = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels


def config(root, **options):
    return Config(dataset="ImageFolder", data=str(root), device="cpu", workers=2, **options)


def load(root, **options):
    return image_folder.load(config(root, **options))


def complaint(root, **options):
    with pytest.raises(UserError) as raised:
        load(root, **options)
    return str(raised.value)


# ---- what is found -------------------------------------------------------------------------------------------------


def test_classes_are_the_folders_of_train_in_order_and_images_go_with_their_labels(tmp_path):
    pixels = put_tree(tmp_path)
    source = load(tmp_path)
    assert source.spec.classes == ("cat", "dog")
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 1, 1]
    assert source.train.images.dtype == torch.uint8
    assert torch.equal(source.train.images, pixels["train"])
    assert torch.equal(source.test.images, pixels["test"])


def test_a_class_may_be_missing_from_test_and_labels_do_not_move(tmp_path):
    pixels = put_tree(tmp_path)
    for path in (tmp_path / "test/cat").iterdir():
        path.unlink()
    (tmp_path / "test/cat").rmdir()
    test = load(tmp_path).test
    assert test.labels.tolist() == [1, 1]
    assert torch.equal(test.images, pixels["test"][2:])


def test_without_val_a_tenth_of_train_is_held_out(tmp_path):
    put_tree(tmp_path, each=10)
    splits = load_data(config(tmp_path))
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (18, 2, 20)


def test_a_val_folder_is_the_validation_set_and_train_stays_whole(tmp_path):
    pixels = put_tree(tmp_path, ("train", "val", "test"), each=10)
    source = load(tmp_path)
    assert torch.equal(source.val.images, pixels["val"])
    assert source.val.labels.tolist() == [0] * 10 + [1] * 10
    splits = load_data(config(tmp_path))
    assert torch.equal(splits.train.images.images, pixels["train"])
    assert len(splits.val) == 20


def test_files_that_are_no_images_and_hidden_ones_are_left_out(tmp_path):
    pixels = put_tree(tmp_path)
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._0.png").write_bytes(b"what an archive leaves")
    put(tmp_path / "train/loose.png", drawn(1))
    assert torch.equal(load(tmp_path).train.images, pixels["train"])


def test_the_ending_of_an_image_may_be_in_capitals(tmp_path):
    pixels = put_tree(tmp_path)
    (tmp_path / "train/dog/1.png").rename(tmp_path / "train/dog/1.PNG")
    assert torch.equal(load(tmp_path).train.images, pixels["train"])


def test_a_hidden_folder_is_no_class(tmp_path):
    put_tree(tmp_path)
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    assert load(tmp_path).spec.classes == ("cat", "dog")


def warnings_of(root):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(root)
    return [str(one.message) for one in caught]


@pytest.mark.filterwarnings("ignore:images in folders")
def test_images_in_folders_inside_a_class_are_named_in_one_warning(tmp_path):
    pixels = put_tree(tmp_path)
    put(tmp_path / "train/cat/more/9.png", drawn(1))
    put(tmp_path / "train/dog/a/b/9.png", drawn(2))
    (tmp_path / "train/dog/notes").mkdir()
    (tmp_path / "train/dog/notes/why.txt").write_text("no image")
    place = tmp_path / "train"
    assert warnings_of(tmp_path) == [
        f"images in folders inside a class are not read: {place / 'cat/more'}, {place / 'dog/a'}"
    ]
    assert torch.equal(load(tmp_path).train.images, pixels["train"])


@pytest.mark.filterwarnings("ignore:classes without")
def test_empty_classes_are_named_in_one_warning(tmp_path):
    put_tree(tmp_path)
    for number in range(8):
        (tmp_path / f"train/empty{number}").mkdir()
    names = ", ".join(str(tmp_path / f"train/empty{number}") for number in range(6))
    assert warnings_of(tmp_path) == [f"classes without images: {names} and 2 more"]
    assert load(tmp_path).train.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_folder_is_named_with_the_layout(tmp_path, missing):
    put_tree(tmp_path, ("test" if missing == "train" else "train",))
    assert complaint(tmp_path) == (
        f"there is no folder {tmp_path / missing}; an ImageFolder has train/<class>/*.jpg, test/<class>/*.jpg and, if "
        "you like, val/<class>/*.jpg under --data"
    )


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_a_folder_without_images_is_named(tmp_path, empty):
    put_tree(tmp_path, ("train", "val", "test"))
    for path in (tmp_path / empty).glob("*/*"):
        path.rename(path.with_suffix(".txt"))
    assert complaint(tmp_path).startswith(f"there are no images in {tmp_path / empty}; an ImageFolder has train/")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_has_not_is_named_with_the_nearest_one(tmp_path, split):
    put_tree(tmp_path, ("train", "val", "test"))
    (tmp_path / split / "dog").rename(tmp_path / split / "dogs")
    assert complaint(tmp_path) == (
        f"{tmp_path / split} has a class 'dogs' that train/ has not; did you mean 'dog'?"
    )  # fmt: skip


# ---- decoding ------------------------------------------------------------------------------------------------------


def test_images_of_one_size_stay_as_they_are_also_when_they_are_no_squares(tmp_path):
    pixels = put_tree(tmp_path, height=4, width=6)
    source = load(tmp_path)
    assert source.spec.shape == (3, 4, 6)
    assert torch.equal(source.train.images, pixels["train"])


@pytest.mark.parametrize("place", ["train/dog/0.png", "test/cat/1.png"])
def test_an_image_of_another_size_is_named_with_what_to_do(tmp_path, place):
    put_tree(tmp_path)
    put(tmp_path / place, drawn(0, 5, 6))
    assert complaint(tmp_path) == (
        f"{tmp_path / place} is 5×6 where others are 4×4; give --image-size to bring all to one size"
    )


def test_image_size_makes_squares_of_images_of_any_size(tmp_path):
    put_tree(tmp_path)
    put(tmp_path / "train/cat/0.png", np.full((9, 5, 3), (10, 20, 30), dtype=np.uint8))
    put(tmp_path / "test/dog/0.png", np.full((3, 40, 3), (40, 50, 60), dtype=np.uint8))
    source = load(tmp_path, image_size=8)
    assert source.spec.shape == (3, 8, 8)
    assert source.train.images.shape == source.test.images.shape == (4, 3, 8, 8)
    assert torch.equal(source.train.images[0], torch.tensor([10, 20, 30]).byte().view(3, 1, 1).expand(3, 8, 8))
    assert torch.equal(source.test.images[2], torch.tensor([40, 50, 60]).byte().view(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize("tall", [False, True])
def test_the_shorter_side_becomes_image_size_and_the_middle_is_taken(tmp_path, tall):
    put_tree(tmp_path)
    image = drawn(7, 4, 10)
    put(tmp_path / "train/cat/0.png", image.transpose(1, 0, 2) if tall else image)
    found = load(tmp_path, image_size=4).train.images[0]
    middle = torch.from_numpy(image[:, 3:7]).permute(2, 0, 1)
    assert torch.equal(found, middle.transpose(1, 2) if tall else middle)


def test_shrinking_averages_all_pixels_and_does_not_pick_some(tmp_path):
    put_tree(tmp_path)
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::8] = 255  # one column of eight: picking the nearest two would find black
    put(tmp_path / "train/cat/0.png", stripes)
    found = load(tmp_path, image_size=8).train.images[0, :, 2:-2, 2:-2].float()
    assert found.min() > 20 and found.max() < 45  # 255 / 8 is 32


GREY = Image.new("L", (4, 4), 77)
PALETTE = Image.new("P", (4, 4), 1)
PALETTE.putpalette([1, 2, 3, 200, 100, 50])
GREY_16_BITS = Image.fromarray(np.full((4, 4), 200 * 257, dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (GREY, (77, 77, 77)),
        (PALETTE, (200, 100, 50)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 128)), (9, 8, 7)),
        (Image.new("LA", (4, 4), (60, 128)), (60, 60, 60)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (GREY_16_BITS, (200, 200, 200)),
    ],
    ids=["grey", "palette", "RGBA", "grey with alpha", "black and white", "16-bit grey"],
)
def test_images_of_every_kind_become_rgb(tmp_path, image, colour):
    put_tree(tmp_path)
    put(tmp_path / "train/cat/0.png", image)
    found = load(tmp_path).train.images[0]
    assert torch.equal(found, torch.tensor(colour).byte().view(3, 1, 1).expand(3, 4, 4))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_an_image_of_32_bits_is_refused(tmp_path, mode):
    put_tree(tmp_path)
    path = put(tmp_path / "train/cat/0.tiff", Image.new(mode, (4, 4), 7))
    assert complaint(tmp_path) == (
        f"{path} has pixels of 32 bits (mode {mode}), of which black and white are not known; save it with 8 or 16 bits"
    )


def test_sixteen_bits_that_pil_hands_over_as_32_are_read_as_sixteen(tmp_path):
    put_tree(tmp_path)
    (tmp_path / "train/cat/0.png").unlink()
    (tmp_path / "train/cat/0.pgm").write_bytes(b"P5 4 4 65535\n" + np.full((4, 4), 200 * 257, dtype=">u2").tobytes())
    with Image.open(tmp_path / "train/cat/0.pgm") as image:
        assert image.mode == "I"
    assert (load(tmp_path).train.images[0] == 200).all()


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, 3), (3, 2), (8, 1)])
def test_an_image_is_turned_upright_as_its_exif_data_says(tmp_path, orientation, turns):
    put_tree(tmp_path)
    exif, pixels = Image.Exif(), drawn(5)
    exif[0x0112] = orientation
    put(tmp_path / "train/cat/0.png", pixels, exif=exif)
    upright = np.rot90(pixels, turns).copy()
    assert torch.equal(load(tmp_path).train.images[0], torch.from_numpy(upright).permute(2, 0, 1))


def test_the_size_that_all_must_have_is_that_of_the_upright_image(tmp_path):
    put_tree(tmp_path, height=6, width=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "train/cat/0.png", drawn(5, height=4, width=6), exif=exif)
    assert load(tmp_path).spec.shape == (3, 6, 4)


def test_jpeg_images_are_read_too(tmp_path):
    for place in ("train/a/0.jpg", "train/b/0.JPEG", "test/a/0.jpg"):
        put(tmp_path / place, Image.new("RGB", (16, 16), (200, 100, 50)), format="JPEG", quality=95)
    images = load(tmp_path).train.images
    assert images.shape == (2, 3, 16, 16)
    assert (images.int() - torch.tensor([200, 100, 50]).view(3, 1, 1)).abs().max() <= 3


def test_without_workers_images_are_read_all_the_same(tmp_path):
    pixels = put_tree(tmp_path)
    options = Config(dataset="ImageFolder", data=str(tmp_path), workers=0)
    assert torch.equal(image_folder.load(options).train.images, pixels["train"])


@pytest.mark.parametrize("place", ["train/cat/0.png", "train/dog/1.png", "test/cat/0.png"])
@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: b"no image" * 9, lambda raw: raw[: len(raw) // 2]])
@pytest.mark.parametrize("size", [0, 8])
def test_a_damaged_image_is_named(tmp_path, place, damage, size):
    put_tree(tmp_path, height=16, width=16)
    path = tmp_path / place
    path.write_bytes(damage(path.read_bytes()))
    message = complaint(tmp_path, image_size=size)
    assert message.startswith(f"{path} is not a readable image (")
    assert message.endswith("); mend or remove it")


def test_a_set_too_large_to_hold_decoded_is_refused(tmp_path, monkeypatch):
    put_tree(tmp_path)
    monkeypatch.setattr(decoded, "LARGEST_BYTES", 8 * 3 * 4 * 4)  # all splits together, not each
    assert len(load(tmp_path).train) == 4
    assert complaint(tmp_path, image_size=5) == (
        "8 images of 5×5 take more than 0 GiB decoded; give a smaller --image-size"
    )


def test_the_limit_is_for_machines_of_today():
    assert 2**30 <= decoded.LARGEST_BYTES <= 2**34


def test_decoding_holds_no_second_copy_of_the_images(tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []

    def watched(path):
        pixels = read_image(path)
        alive.add(pixels)
        most.append(len(alive))
        return pixels

    pixels = put_tree(tmp_path, each=10)
    monkeypatch.setattr(decoded, "read_image", watched)
    assert torch.equal(load(tmp_path).train.images, pixels["train"])
    assert max(most) <= 5  # two workers, each about to let go of the one before


# ---- what it declares ----------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_images_channel_by_channel(tmp_path):
    pixels = put_tree(tmp_path)
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


@pytest.mark.parametrize(
    ("height", "width", "pad"),
    [(32, 32, 4), (16, 40, 2), (40, 23, 2), (7, 7, 0), (64, 64, 8), (65, 64, 0), (16, 80, 0)],
)
def test_up_to_64_pixels_crops_go_to_an_eighth_of_the_shorter_side(tmp_path, height, width, pad):
    put_tree(tmp_path, each=1, height=height, width=width)
    spec = load(tmp_path).spec
    assert (spec.pad, spec.flip) == (pad, True)


# ---- the cache -----------------------------------------------------------------------------------------------------


def spoil(path):
    """Make a file unreadable as an image, its name, size and time of change as before."""
    found = path.stat()
    path.write_bytes(b"?" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def spoil_all(root):
    for path in root.glob("*/*/*.png"):
        spoil(path)


@pytest.mark.parametrize("size", [0, 3])
def test_an_unchanged_folder_is_not_decoded_again(tmp_path, size):
    put_tree(tmp_path, ("train", "val", "test"))
    before = load(tmp_path, image_size=size)
    spoil_all(tmp_path)
    after = load(tmp_path, image_size=size)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(after, name).images, getattr(before, name).images)
        assert torch.equal(getattr(after, name).labels, getattr(before, name).labels)
    assert after.spec == before.spec


def test_the_cache_follows_the_folder_when_it_is_moved(tmp_path):
    pixels = put_tree(tmp_path / "here")
    load(tmp_path / "here")
    spoil_all(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(load(tmp_path / "there").train.images, pixels["train"])


def test_every_image_size_has_its_own_cache(tmp_path):
    pixels = put_tree(tmp_path)
    assert load(tmp_path, image_size=2).train.images.shape == (4, 3, 2, 2)
    assert torch.equal(load(tmp_path).train.images, pixels["train"])
    spoil_all(tmp_path)
    assert load(tmp_path, image_size=2).train.images.shape == (4, 3, 2, 2)
    assert torch.equal(load(tmp_path).train.images, pixels["train"])


def test_what_an_older_version_decoded_is_not_taken(tmp_path, monkeypatch):
    put_tree(tmp_path)
    monkeypatch.setattr(decoded, "DECODING", 1)
    load(tmp_path)
    monkeypatch.undo()
    spoil_all(tmp_path)
    assert "is not a readable image" in complaint(tmp_path)


def test_an_added_image_is_seen(tmp_path):
    pixels = put_tree(tmp_path)
    load(tmp_path)
    put(tmp_path / "test/cat/9.png", drawn(50))
    test = load(tmp_path).test
    assert test.labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(test.images[2], torch.from_numpy(drawn(50)).permute(2, 0, 1))
    assert torch.equal(test.images[[0, 1, 3, 4]], pixels["test"])


def test_a_removed_image_is_gone(tmp_path):
    pixels = put_tree(tmp_path)
    load(tmp_path)
    (tmp_path / "train/cat/0.png").unlink()
    train = load(tmp_path).train
    assert train.labels.tolist() == [0, 1, 1]
    assert torch.equal(train.images, pixels["train"][1:])


def test_a_renamed_image_is_seen_though_sizes_and_times_are_all_the_same(tmp_path):
    put(tmp_path / "test/a/0.png", drawn(0))
    for number in range(3):
        path = put(tmp_path / f"train/a/{number}.bmp", drawn(number))
        os.utime(path, ns=(10**18, 10**18))
    before = load(tmp_path).train.images
    (tmp_path / "train/a/0.bmp").rename(tmp_path / "train/a/3.bmp")
    assert torch.equal(load(tmp_path).train.images, before[[1, 2, 0]])


@pytest.mark.parametrize(("kind", "later"), [("BMP", 1), ("PNG", 0)], ids=["by its time", "by its size"])
def test_a_changed_image_is_read_anew(tmp_path, kind, later):
    put_tree(tmp_path)
    path = put(tmp_path / "train/dog/0.png", drawn(3), format="BMP")
    before = path.stat()
    load(tmp_path)
    put(path, np.full((4, 4, 3), 9, dtype=np.uint8), format=kind)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    # Either is enough, so the other has to be as it was.
    assert (path.stat().st_size == before.st_size) == bool(later)
    assert (load(tmp_path).train.images[2] == 9).all()


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: b"no cache" * 50, lambda raw: raw[: len(raw) // 2]])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    pixels = put_tree(tmp_path)
    load(tmp_path)
    cache = tmp_path / ".decoded_native.safetensors"
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    assert torch.equal(load(tmp_path).train.images, pixels["train"])
    assert cache.read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_only_warns(tmp_path, monkeypatch):
    def refuse(path, _content):
        raise UserError(f"cannot write {path}: Read-only file system")

    pixels = put_tree(tmp_path)
    monkeypatch.setattr(decoded, "write_atomic", refuse)
    with pytest.warns(UserWarning, match=r"decoded images are not cached: cannot write .*Read-only file system"):
        source = load(tmp_path)
    assert torch.equal(source.train.images, pixels["train"])


def test_an_ordinary_folder_warns_of_nothing(tmp_path):
    put_tree(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)
        load(tmp_path)
