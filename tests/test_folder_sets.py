"""Tiny ImageNet, ImageNet and Caltech-101: where they are looked for, and how they are divided."""

import warnings

import pytest
import torch
from small_sets import put_caltech, put_imagenet, put_images, put_tiny_imagenet

from args_helper import Config
from data.batches import PlainBatches, TrainBatches
from data.load import load_data
from data.sets import caltech101, imagenet, tiny_imagenet
from data.streamed_batches import StreamedPlainBatches, StreamedTrainBatches
from utils.errors import UserError

SETS = {"TinyImageNet": tiny_imagenet, "ImageNet": imagenet, "Caltech101": caltech101}
pytestmark = pytest.mark.filterwarnings("ignore:.* classes, but .* were found")


def config(name, root, **options):
    return Config(dataset=name, data=str(root), device="cpu", workers=0, **options)


def splits_of(name, root, **options):
    return load_data(config(name, root, **options))


def paths_of(*parts):
    """The files of streamed splits, and how often each is there."""
    return sorted(str(files.path(index)) for files in parts for index in range(len(files)))


# ---- Tiny ImageNet -------------------------------------------------------------------------------------------------


def test_tiny_imagenet_is_held_in_memory_with_a_tenth_of_training_for_validation(tmp_path):
    put_tiny_imagenet(tmp_path, classes=3, train=10, val=4)
    splits = splits_of("TinyImageNet", tmp_path)
    assert isinstance(splits.train, TrainBatches) and isinstance(splits.test, PlainBatches)
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (27, 3, 12)
    assert splits.train.images.images.shape[1:] == (3, 64, 64)
    full = splits_of("TinyImageNet", tmp_path, use_full_data=True)
    assert len(full.train.images) == 30 and full.val is None
    assert splits.spec.classes == ("n00000000", "n00000001", "n00000002")


def test_tiny_imagenet_is_the_same_as_it_is_unpacked_and_as_it_is_arranged(tmp_path):
    folder = put_tiny_imagenet(tmp_path, original=True)
    unpacked = tiny_imagenet.load(config("TinyImageNet", tmp_path))
    assert len(unpacked.train) == 20 and unpacked.train.labels.tolist() == [0] * 10 + [1] * 10
    assert unpacked.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    for number in range(6):  # what the script does
        place = folder / "val" / f"n0000000{number % 2}"
        place.mkdir(exist_ok=True)
        (folder / "val/images" / f"{number}.JPEG").rename(place / f"{number}.JPEG")
    (folder / "val/images").rmdir()
    arranged = tiny_imagenet.load(config("TinyImageNet", tmp_path))
    assert torch.equal(arranged.train.images, unpacked.train.images)
    assert arranged.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(arranged.test.images, unpacked.test.images[[0, 2, 4, 1, 3, 5]])


@pytest.mark.parametrize("line", ["9.JPEG\tn00000000", "0.JPEG\tn77", "0.JPEG", "../../../../etc/0.JPEG\tn00000000"])
def test_an_annotation_of_nothing_is_named(tmp_path, line):
    folder = put_tiny_imagenet(tmp_path, original=True)
    (folder / "val/val_annotations.txt").write_text(f"1.JPEG\tn00000001\n{line}\n")
    with pytest.raises(UserError, match="is no image of images/ with a class of train/") as raised:
        tiny_imagenet.load(config("TinyImageNet", tmp_path))
    assert f"'{line.replace(chr(9), ' ')}'" in str(raised.value)


def test_an_image_size_makes_tiny_imagenet_smaller(tmp_path):
    put_tiny_imagenet(tmp_path)
    splits = splits_of("TinyImageNet", tmp_path, image_size=16)
    assert splits.spec.shape == (3, 16, 16)
    assert next(iter(splits.test))[0].shape == (6, 3, 16, 16)


# ---- ImageNet ------------------------------------------------------------------------------------------------------


def test_imagenet_is_streamed_and_val_is_the_test_set(tmp_path):
    folder = put_imagenet(tmp_path, train=20, val=5)
    splits = splits_of("ImageNet", tmp_path, image_size=16)
    assert isinstance(splits.train, StreamedTrainBatches) and isinstance(splits.test, StreamedPlainBatches)
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (36, 4, 10)
    source = imagenet.load(config("ImageNet", tmp_path))
    assert paths_of(source.train) == sorted(map(str, (folder / "train").rglob("*.JPEG")))
    assert paths_of(source.test) == sorted(map(str, (folder / "val").rglob("*.JPEG")))
    assert source.train.labels.tolist() == [0] * 20 + [1] * 20


def test_of_the_whole_of_imagenet_as_many_images_are_held_out_as_published(monkeypatch, tmp_path):
    put_imagenet(tmp_path)
    monkeypatch.setattr(imagenet, "HELD_OUT", 3)
    assert imagenet.load(config("ImageNet", tmp_path)).val_size == 3


def test_validation_and_training_share_no_file_and_are_the_whole(tmp_path):
    put_imagenet(tmp_path)
    source, splits = imagenet.load(config("ImageNet", tmp_path)), splits_of("ImageNet", tmp_path, image_size=8)
    trained = paths_of(splits.train.images)
    assert len(set(trained)) == 36
    held_out = torch.cat([images for images, _ in splits.val])
    left = [index for index in range(40) if str(source.train.path(index)) not in trained]
    one_by_one = splits_of("ImageNet", tmp_path, image_size=8, use_full_data=True).train
    plain = StreamedPlainBatches(one_by_one.images.subset(torch.tensor(left)), splits.spec, 8, "cpu", 0)
    expected = torch.cat([images for images, _ in plain])
    as_sets = [{tuple(image.flatten().tolist()) for image in images} for images in (held_out, expected)]
    assert as_sets[0] == as_sets[1] and len(as_sets[0]) == 4


def test_the_seed_decides_what_is_held_out(tmp_path):
    put_imagenet(tmp_path)
    first, again, other = (paths_of(splits_of("ImageNet", tmp_path, seed=seed).train.images) for seed in (1, 1, 2))
    assert first == again != other


def test_use_full_data_trains_on_all_of_imagenet(tmp_path):
    put_imagenet(tmp_path)
    splits = splits_of("ImageNet", tmp_path, use_full_data=True)
    assert splits.val is None and len(splits.train.images) == 40


def test_images_are_224_pixels_unless_a_size_is_given(tmp_path):
    put_imagenet(tmp_path, train=1, val=1)
    assert next(iter(splits_of("ImageNet", tmp_path).test))[0].shape == (2, 3, 224, 224)
    assert next(splits_of("ImageNet", tmp_path, image_size=12).train.epoch(torch.Generator()))[0].shape[1:] == (
        3,
        12,
        12,
    )


# ---- Caltech-101 ---------------------------------------------------------------------------------------------------


def test_every_class_of_caltech_is_divided_in_fifths_and_the_background_is_none(tmp_path):
    folder = put_caltech(tmp_path, {"ant": 10, "bass": 20})
    source = caltech101.load(config("Caltech101", tmp_path))
    assert source.spec.classes == ("ant", "bass")
    counts = [torch.bincount(part.labels).tolist() for part in (source.train, source.val, source.test)]
    assert counts == [[6, 12], [2, 4], [2, 4]]
    files = [str(path) for name in ("ant", "bass") for path in (folder / name).iterdir()]
    assert paths_of(source.train, source.val, source.test) == sorted(files)


def test_the_test_part_of_caltech_is_the_same_for_every_seed_and_validation_is_not(tmp_path):
    put_caltech(tmp_path, {"ant": 40, "bass": 40})
    first, other = (caltech101.load(config("Caltech101", tmp_path, seed=seed)) for seed in (1, 2))
    assert paths_of(first.test) == paths_of(other.test)
    assert paths_of(first.val) != paths_of(other.val)
    again = caltech101.load(config("Caltech101", tmp_path, seed=1))
    assert paths_of(first.val) == paths_of(again.val)


def test_use_full_data_trains_on_what_would_be_for_validation(tmp_path):
    put_caltech(tmp_path, {"ant": 10, "bass": 20})
    splits = splits_of("Caltech101", tmp_path, use_full_data=True, image_size=8)
    assert splits.val is None
    assert (len(splits.train.images), len(splits.test)) == (24, 6)


def test_caltech_may_lie_in_a_folder_above(tmp_path):
    put_caltech(tmp_path, {"ant": 5})
    assert len(caltech101.load(config("Caltech101", tmp_path / "caltech101")).test) == 1


# ---- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "TinyImageNet",
            "Tiny ImageNet is not in {0}: there is no folder {0}/tiny-imagenet-200 with train and val in it; get it "
            "with ./load_tiny_imagenet.sh, or name the folder that has it with --data",
        ),
        (
            "ImageNet",
            "ImageNet is not in {0}: there is no folder {0}/imagenet with train and val in it; it is given to "
            "researchers by image-net.org: unpack it, the images of val in folders of their classes as well, or name "
            "the folder that has it with --data",
        ),
        (
            "Caltech101",
            "Caltech-101 is not in {0}: there is no folder {0}/caltech101/101_ObjectCategories; get caltech-101.zip "
            "from https://data.caltech.edu/records/mzrjq-6wc02 and unpack it and the 101_ObjectCategories.tar.gz in it "
            "there, or name the folder that has 101_ObjectCategories with --data",
        ),
    ],
)
def test_a_set_that_is_not_there_is_one_clear_message(name, message, tmp_path):
    with pytest.raises(UserError) as raised:
        splits_of(name, tmp_path / "nowhere")
    assert str(raised.value) == message.format(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["TinyImageNet", "ImageNet"])
def test_the_folder_of_the_set_may_be_named_itself(name, tmp_path):
    folder = put_tiny_imagenet(tmp_path) if name == "TinyImageNet" else put_imagenet(tmp_path)
    assert len(SETS[name].load(config(name, folder)).test) in (6, 10)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("TinyImageNet", "Tiny ImageNet has 200 classes, but 2 were found"),
        ("ImageNet", "ImageNet has 1000 classes, but 2 were found"),
        ("Caltech101", "Caltech-101 has 101 classes, but 2 were found"),
    ],
)
def test_a_part_of_a_set_is_trained_on_with_one_warning(name, says, tmp_path):
    put_tiny_imagenet(tmp_path), put_imagenet(tmp_path), put_caltech(tmp_path, {"ant": 5, "bass": 5})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SETS[name].load(config(name, tmp_path))
    assert [str(one.message) for one in caught] == [says]


@pytest.mark.parametrize("name", ["TinyImageNet", "ImageNet"])
def test_a_class_of_val_that_train_has_not_is_named(name, tmp_path):
    folder = put_tiny_imagenet(tmp_path) if name == "TinyImageNet" else put_imagenet(tmp_path)
    put_images(folder, {"val/n00000009": 1})
    with pytest.raises(UserError, match="has a class 'n00000009' that train/ has not; did you mean 'n0000000"):
        SETS[name].load(config(name, tmp_path))


def test_images_of_val_that_are_not_in_folders_of_classes_are_asked_for(tmp_path):
    put_images(tmp_path / "imagenet", {"train/n0": 2, "val": 3})
    with pytest.raises(UserError, match=r"no images in .*val; ImageNet has train/<class>/\*\.JPEG and val/<class>/"):
        imagenet.load(config("ImageNet", tmp_path))


@pytest.mark.parametrize("name", ["ImageNet", "Caltech101"])
def test_test_images_are_never_augmented(name, tmp_path):
    put_imagenet(tmp_path), put_caltech(tmp_path, {"ant": 10, "bass": 10})
    test = splits_of(name, tmp_path, image_size=8).test
    once, again = (torch.cat([images for images, _ in test]) for _ in range(2))
    assert torch.equal(once, again)


def test_large_images_are_zoomed_and_mirrored_and_tiny_ones_shifted_and_mirrored():
    for module in (imagenet, caltech101):
        assert (module.SPEC.pad, module.SPEC.flip, module.SPEC.zoom) == (0, True, True)
    assert (tiny_imagenet.SPEC.pad, tiny_imagenet.SPEC.flip, tiny_imagenet.SPEC.zoom) == (4, True, False)
    assert (caltech101.SPEC.mean, caltech101.SPEC.std) == (imagenet.SPEC.mean, imagenet.SPEC.std)
