"""Tiny ImageNet, ImageNet and Caltech-101: where they are looked for, and how they are divided."""

import pytest
import torch
from small_sets import put_caltech, put_imagenet, put_images, put_tiny_imagenet
from toys import complaint

from args_helper import Config
from data.batches import PlainBatches, TrainBatches
from data.load import load_data
from data.sets import caltech101, imagenet, tiny_imagenet
from data.streamed_batches import StreamedPlainBatches, StreamedTrainBatches

SETS = {"TinyImageNet": tiny_imagenet, "ImageNet": imagenet, "Caltech101": caltech101}
pytestmark = pytest.mark.filterwarnings("ignore:.* classes, but .* were found")


PUT = {
    "TinyImageNet": put_tiny_imagenet, "ImageNet": put_imagenet,
    "Caltech101": lambda root: put_caltech(root, {"ant": 10, "bass": 20}),
}  # fmt: skip
"""Set -> what writes a few of its images; returns their folder."""


def config(name, root, **options):
    return Config(dataset=name, data=str(root), device="cpu", workers=0, **options)


def source_of(name, root, **options):
    return SETS[name].load(config(name, root, **options))


def splits_of(name, root, **options):
    return load_data(config(name, root, **options))


def lengths(splits):
    return (len(splits.train.images), splits.val and len(splits.val), len(splits.test))


def paths_of(*parts):
    """The files of streamed splits, and how often each is there."""
    return sorted(str(files.path(index)) for files in parts for index in range(len(files)))


# ---- Tiny ImageNet -------------------------------------------------------------------------------------------------


def test_tiny_imagenet_is_held_in_memory_with_a_tenth_of_training_for_validation(tmp_path):
    put_tiny_imagenet(tmp_path, classes=3, train=10, val=4)
    splits = splits_of("TinyImageNet", tmp_path)
    assert isinstance(splits.train, TrainBatches) and isinstance(splits.test, PlainBatches)
    assert lengths(splits) == (27, 3, 12)
    assert lengths(splits_of("TinyImageNet", tmp_path, use_full_data=True)) == (30, None, 12)
    assert splits.spec.classes == ("n00000000", "n00000001", "n00000002")


def test_tiny_imagenet_is_the_same_as_it_is_unpacked_and_as_it_is_arranged(tmp_path):
    folder = put_tiny_imagenet(tmp_path, original=True)
    unpacked = source_of("TinyImageNet", tmp_path)
    assert len(unpacked.train) == 20 and unpacked.train.labels.tolist() == [0] * 10 + [1] * 10
    assert unpacked.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    for number in range(6):  # what the script does
        place = folder / "val" / f"n0000000{number % 2}"
        place.mkdir(exist_ok=True)
        (folder / "val/images" / f"{number}.JPEG").rename(place / f"{number}.JPEG")
    (folder / "val/images").rmdir()
    arranged = source_of("TinyImageNet", tmp_path)
    assert torch.equal(arranged.train.images, unpacked.train.images)
    assert arranged.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(arranged.test.images, unpacked.test.images[[0, 2, 4, 1, 3, 5]])


@pytest.mark.parametrize("line", ["9.JPEG\tn00000000", "0.JPEG\tn77", "0.JPEG", "../../../../etc/0.JPEG\tn00000000"])
def test_an_annotation_of_nothing_is_named(tmp_path, line):
    folder = put_tiny_imagenet(tmp_path, original=True)
    (folder / "val/val_annotations.txt").write_text(f"1.JPEG\tn00000001\n{line}\n")
    said = complaint(source_of, "TinyImageNet", tmp_path)
    assert "is no image of images/ with a class of train/" in said and f"'{line.replace(chr(9), ' ')}'" in said


@pytest.mark.parametrize(("numbers", "count"), [([0, 1, 2], 3), ([0, 1, 2, 3, 4, 5, 5], 7), ([0, 0, 1, 2, 3, 4], 6)])
def test_every_annotated_image_is_tested_on_once(tmp_path, numbers, count):
    folder = put_tiny_imagenet(tmp_path, original=True)
    (folder / "val/val_annotations.txt").write_text("".join(f"{number}.JPEG\tn00000000\n" for number in numbers))
    said = complaint(source_of, "TinyImageNet", tmp_path)
    assert f"has {count} lines for the 6 images of images/, and each needs one of its own" in said


@pytest.mark.parametrize(("name", "size", "side"), [("TinyImageNet", 16, 16), ("ImageNet", 9, 9), ("ImageNet", 0, 224)])
def test_an_image_size_makes_images_smaller(name, size, side, tmp_path):
    PUT[name](tmp_path, train=1, val=1)
    splits = splits_of(name, tmp_path, image_size=size, use_full_data=True)
    for batches in (splits.test, splits.train.epoch(torch.Generator())):
        assert next(iter(batches))[0].shape == (2, 3, side, side)
    assert splits.spec.shape == (3, side, side)


# ---- ImageNet ------------------------------------------------------------------------------------------------------


def test_imagenet_is_streamed_and_val_is_the_test_set(tmp_path, monkeypatch):
    folder = put_imagenet(tmp_path, train=20, val=5)
    splits, source = splits_of("ImageNet", tmp_path), source_of("ImageNet", tmp_path)
    assert isinstance(splits.train, StreamedTrainBatches) and isinstance(splits.test, StreamedPlainBatches)
    assert lengths(splits) == (36, 4, 10)
    assert lengths(splits_of("ImageNet", tmp_path, use_full_data=True)) == (40, None, 10)
    assert paths_of(source.train) == sorted(map(str, (folder / "train").rglob("*.JPEG")))
    assert paths_of(source.test) == sorted(map(str, (folder / "val").rglob("*.JPEG")))
    assert source.train.labels.tolist() == [0] * 20 + [1] * 20
    monkeypatch.setattr(imagenet, "HELD_OUT", 3)  # of the whole set as many images as published, and no tenth
    assert source_of("ImageNet", tmp_path).val_size == 3


def test_a_folder_with_the_name_of_an_image_is_none(tmp_path):
    folder = put_imagenet(tmp_path)
    before = paths_of(source_of("ImageNet", tmp_path).train)
    (next((folder / "train").iterdir()) / "folder.jpg").mkdir()
    assert paths_of(source_of("ImageNet", tmp_path).train) == before


# ---- Caltech-101 ---------------------------------------------------------------------------------------------------


def test_every_class_of_caltech_is_divided_in_fifths_and_the_background_is_none(tmp_path):
    folder = put_caltech(tmp_path, {"ant": 10, "bass": 20})
    source = source_of("Caltech101", tmp_path)
    parts = source.train, source.val, source.test
    assert source.spec.classes == ("ant", "bass")
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[6, 12], [2, 4], [2, 4]]
    assert paths_of(*parts) == sorted(str(path) for name in ("ant", "bass") for path in (folder / name).iterdir())
    assert lengths(splits_of("Caltech101", tmp_path, use_full_data=True)) == (24, None, 6)


def test_the_test_part_of_caltech_is_the_same_for_every_seed_and_validation_is_not(tmp_path):
    put_caltech(tmp_path, {"ant": 40, "bass": 40})
    first, again, other = (source_of("Caltech101", tmp_path, seed=seed) for seed in (1, 1, 2))
    assert paths_of(first.test) == paths_of(other.test)
    assert paths_of(first.val) == paths_of(again.val) != paths_of(other.val)


# ---- all of them ---------------------------------------------------------------------------------------------------


MISSING = {
    "TinyImageNet": "Tiny ImageNet is not in {0}: there is no folder {0}/tiny-imagenet-200 with train and val in it; "
    "get it with ./load_tiny_imagenet.sh, or name the folder that has it with --data",
    "ImageNet": "ImageNet is not in {0}: there is no folder {0}/imagenet with train and val in it; it is given to "
    "researchers by image-net.org: unpack it, the images of val in folders of their classes as well, or name the "
    "folder that has it with --data",
    "Caltech101": "Caltech-101 is not in {0}: there is no folder {0}/caltech101/101_ObjectCategories; get "
    "caltech-101.zip from https://data.caltech.edu/records/mzrjq-6wc02 and unpack it and the "
    "101_ObjectCategories.tar.gz in it there, or name the folder that has 101_ObjectCategories with --data",
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_is_one_clear_message(name, tmp_path):
    assert complaint(splits_of, name, tmp_path / "nowhere") == MISSING[name].format(tmp_path / "nowhere")


@pytest.mark.parametrize("name", SETS)
def test_the_folder_of_the_set_may_be_named_itself(name, tmp_path):
    folder = PUT[name](tmp_path)
    named = folder.parent if name == "Caltech101" else folder
    assert len(source_of(name, named).test) == len(source_of(name, tmp_path).test)


@pytest.mark.parametrize(
    ("name", "said"), [("TinyImageNet", "Tiny ImageNet has 200"), ("ImageNet", "ImageNet has 1000"),
                       ("Caltech101", "Caltech-101 has 101")],
)  # fmt: skip
def test_a_part_of_a_set_is_trained_on_with_one_warning(name, said, tmp_path):
    PUT[name](tmp_path)
    with pytest.warns(UserWarning) as caught:
        source_of(name, tmp_path)
    assert [str(one.message) for one in caught] == [f"{said} classes, but 2 were found"]


def test_images_of_val_that_are_not_in_folders_of_classes_are_asked_for(tmp_path):
    put_images(tmp_path / "imagenet", {"train/n0": 2, "val": 3})
    said = f"no images in {tmp_path}/imagenet/val; ImageNet has train/<class>/*.JPEG and val/<class>/"
    assert said in complaint(source_of, "ImageNet", tmp_path)


def test_large_images_are_zoomed_and_mirrored_and_tiny_ones_shifted_and_mirrored():
    how = [(module.SPEC.pad, module.SPEC.flip, module.SPEC.zoom) for module in SETS.values()]
    assert how == [(4, True, False), (0, True, True), (0, True, True)]
    assert (caltech101.SPEC.mean, caltech101.SPEC.std) == (imagenet.SPEC.mean, imagenet.SPEC.std)
