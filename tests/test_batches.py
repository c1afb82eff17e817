"""Batches: every image once an epoch, crops and flips in their place, and all that is random drawn at the start."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import same_bits
from small_sets import put_noise
from toys import seeded, whole

from data.batches import PlainBatches, TrainBatches, batch_for_evaluation
from data.image_files import ImageFiles
from data.normalise import Normalise
from data.spec import DataSpec, ImageSet
from data.streamed_batches import StreamedPlainBatches, StreamedTrainBatches
from utils.distributed import collectives as ranks

HEIGHT, WIDTH, PAD = 4, 6, 2
PLACES = 2 * PAD + 1
MEAN, STD = (0.2, 0.5, 0.7), (0.3, 0.25, 0.5)
PLAIN = DataSpec((3, HEIGHT, WIDTH), ("a",), (0.0,) * 3, (1 / 255,) * 3)
"""Its statistics leave pixels as they are, 0 to 255."""
SHIFTED = replace(PLAIN, pad=PAD, flip=True)


def numbered(count):
    """Images of random, nonzero pixels; the label of each is its number."""
    pixels = torch.randint(1, 256, (count, 3, HEIGHT, WIDTH), generator=seeded(99), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count))


# ---- order, of images in memory and of streamed ones ---------------------------------------------------------------


@pytest.fixture(params=["in memory", "streamed"])
def batches(request, tmp_path):
    """A function that makes batches of so many images, whose labels are their numbers; those to train on, augmented."""

    def made(count, size, plain=False):
        if request.param == "in memory":
            return PlainBatches(numbered(count), PLAIN) if plain else TrainBatches(numbered(count), SHIFTED, size)
        files = ImageFiles.of(tmp_path, put_noise(tmp_path, count), range(count))
        kind = StreamedPlainBatches if plain else StreamedTrainBatches
        return kind(files, replace(PLAIN, shape=(3, 8, 8), flip=True, zoom=True), size, "cpu", 0)

    return made


@pytest.mark.parametrize(("count", "size", "sizes"), [
    (12, 5, [5, 5, 2]), (10, 5, [5, 5]), (3, 5, [3]), (5, 5, [5]), (1, 5, [1]), (11, 5, [5, 6]), (6, 5, [6]),
    (3, 2, [3]), (3, 1, [1, 1, 1]), (1, 1, [1]),
])  # fmt: skip
def test_each_image_comes_once_an_epoch_and_a_single_one_joins_the_batch_before(count, size, sizes, batches):
    train = batches(count, size)
    found = list(train.epoch(seeded()))
    assert [train.size(step) for step in range(len(train))] == sizes
    assert [len(labels) for _, labels in found] == [len(images) for images, _ in found] == sizes
    assert sorted(whole(found)[1].tolist()) == list(range(count))


def test_the_same_generator_gives_the_same_bits_and_another_one_others(batches):
    train = batches(50, 8)
    once, again, other = (list(train.epoch(seeded(seed))) for seed in (1, 1, 2))
    assert same_bits(once, again)
    assert len({tuple(whole(epoch)[1].tolist()) for epoch in (once, other, [(torch.ones(1), torch.arange(50))])}) == 3


@pytest.mark.parametrize("first_step", range(6))
@pytest.mark.parametrize("count", [22, 21])
def test_an_epoch_gone_on_with_gives_the_batches_that_were_left(count, first_step, batches):
    train = batches(count, 5)
    assert same_bits(list(train.epoch(seeded(3)))[first_step:], list(train.epoch(seeded(3), first_step)))


def test_all_that_is_random_is_drawn_before_the_first_step_and_nothing_elsewhere(batches):
    drawing, elsewhere = seeded(4), torch.get_rng_state()
    epoch = batches(22, 5).epoch(drawing)
    next(epoch)
    after_one = drawing.get_state()
    assert not torch.equal(after_one, seeded(4).get_state())
    list(epoch)
    assert torch.equal(drawing.get_state(), after_one)
    assert torch.equal(torch.get_rng_state(), elsewhere)


def test_ranks_are_given_parts_that_make_up_the_batches_and_shares_of_what_is_evaluated(batches, monkeypatch):
    monkeypatch.setattr("data.batches.batch_for_evaluation", lambda *_: 5)
    train, plain, parts, shares = batches(12, 5), batches(12, 5, plain=True), [], []
    alone, evaluated = list(train.epoch(seeded(3), 1)), list(plain)
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(list(train.epoch(seeded(3), 1, shared=True)))
        shares += plain
        assert [len(labels) for _, labels in train.epoch(seeded())] == [5, 5, 2]  # else it is given all
    # Of the last batch, of two images, two ranks get nothing.
    assert same_bits([whole(together) for together in zip(*parts, strict=True)], alone)
    assert same_bits(shares, evaluated) and len(shares) == 3


def test_stratified_takes_so_many_of_every_class_and_none_is_augmented(batches):
    train = batches(22, 5)
    plain, numbers = whole(train.unaugmented().epoch(seeded()))
    classes = torch.tensor([0] * 10 + [1] * 11 + [2])
    train.images.labels.copy_(classes)
    images, labels = train.stratified(3, seeded())
    assert torch.bincount(labels).tolist() == [3, 3, 1] and labels.tolist() != sorted(labels.tolist())
    found = (images[:, None] == plain).flatten(2).all(-1)  # which of the images each is
    assert found.sum(1).tolist() == [1] * 7 and found.sum(0).max() == 1
    assert torch.equal(classes[numbers[found.int().argmax(1)]], labels)
    assert same_bits(train.stratified(3, seeded()), (images, labels))


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [PLAIN, SHIFTED], ids=["unpadded", "padded"])
def test_images_are_held_once_also_by_the_unaugmented_batches(spec):
    given = numbered(10)
    train = TrainBatches(given, spec, 4)
    plain = train.unaugmented()
    held = [tensor for one in (train, plain) for tensor in (one.images.images, one._crops)]
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    assert len(places) == 1
    assert (places == {given.images.untyped_storage().data_ptr()}) is (not spec.pad)
    images, labels = whole(plain.epoch(seeded()))
    assert torch.equal(images, given.images[labels].float())


# ---- crops and flips -----------------------------------------------------------------------------------------------


def candidates(images):
    """All that may become of each image: (n, 2, PLACES, PLACES, 3, HEIGHT, WIDTH), mirrored or not, row, column."""
    crops = F.pad(images, (PAD,) * 4).unfold(2, HEIGHT, 1).unfold(3, WIDTH, 1).permute(0, 2, 3, 1, 4, 5)
    return torch.stack([crops, crops.flip(-1)], 1)


def found_places(spec, count=200):
    """For each image which of its candidates came: (n, 2, PLACES, PLACES) bool."""
    train = TrainBatches(numbered(count), spec, 64)
    images, labels = whole(train.epoch(seeded()))
    return (candidates(train.images.images)[labels] == images[:, None, None, None]).flatten(4).all(-1)


def test_crops_are_uniform_flips_are_fair_and_neither_tells_of_the_other():
    found = found_places(SHIFTED, 4000)
    assert (found.flatten(1).sum(1) == 1).all()
    expected = 4000 / (2 * PLACES * PLACES)
    # Chi-squared with 49 degrees of freedom: above 94.6 in one draw of ten thousand.
    assert ((found.sum(0).flatten().double() - expected).square() / expected).sum() < 94.6


def test_without_flip_no_image_is_mirrored():
    found = found_places(replace(SHIFTED, flip=False))
    assert found[:, 1].sum() == 0
    assert (found[:, 0].flatten(1).sum(0) > 0).all()


def test_without_padding_images_are_only_mirrored():
    found = found_places(replace(SHIFTED, pad=0))
    assert found[:, :, PAD, PAD].sum() == 200
    assert 60 < found[:, 1].sum() < 140


def test_the_draws_of_one_image_do_not_depend_on_the_batch_it_is_in():
    small, large = (whole(TrainBatches(numbered(40), SHIFTED, size).epoch(seeded(5))) for size in (3, 40))
    assert same_bits(small, large)


def test_padding_is_black_before_normalising():
    white = ImageSet(torch.full((50, 3, HEIGHT, WIDTH), 255, dtype=torch.uint8), torch.zeros(50).long())
    images, _ = whole(TrainBatches(white, replace(SHIFTED, mean=MEAN, std=STD), 50).epoch(seeded()))
    for channel, mean, std in zip(images.unbind(1), MEAN, STD):
        distance = (channel.unsqueeze(-1) - torch.tensor([(0 - mean) / std, (1 - mean) / std])).abs()
        assert (distance.min(-1).values < 1e-6).all()
        assert (distance.argmin(-1) == 0).any()


# ---- evaluation and normalising ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_pixels_whose_values_are_neighbours_are_normalised_to_the_same_bits(count):
    images, normalise = numbered(count).images, Normalise(replace(PLAIN, mean=MEAN, std=STD), torch.device("cpu"))
    apart, together = normalise(images), normalise(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(apart, together) and together.is_contiguous(memory_format=torch.channels_last)
    if count:
        at = images[0, :, 1, 2].double() / 255
        assert together[0, :, 1, 2].tolist() == pytest.approx(((at - torch.tensor(MEAN)) / torch.tensor(STD)).tolist())


def test_evaluation_goes_through_all_images_in_order_normalised_channel_by_channel_and_training_does_the_same():
    images, spec = numbered(601), replace(PLAIN, mean=MEAN, std=STD)
    plain = PlainBatches(images, replace(spec, pad=PAD, flip=True))
    found, labels = whole(plain)
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    assert len(plain) == 601 and torch.equal(labels, images.labels)
    assert np.abs(found.numpy() - (images.images.numpy().astype(np.float64) / 255 - mean) / std).max() < 1e-5
    assert same_bits(list(plain), list(plain))
    trained, order = whole(TrainBatches(images, spec, 7).epoch(seeded()))
    assert torch.equal(trained, found[order])


def test_batches_are_channels_last_float32_and_no_view_of_the_images():
    images = numbered(20)
    before = images.images.clone()
    for found, labels in [*PlainBatches(images, SHIFTED), *TrainBatches(images, SHIFTED, 8).epoch(seeded())]:
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
        found.zero_()
    assert torch.equal(images.images, before)


@pytest.mark.parametrize(("device", "side", "batch"), [
    ("cpu", 32, 100), ("cpu", 224, 100), ("cuda", 8, 2000), ("cuda", 32, 2000), ("cuda", 224, 40), ("cuda", 2048, 1),
])  # fmt: skip
def test_a_gpu_is_filled_by_images_for_evaluation_by_their_pixels(device, side, batch):
    assert batch_for_evaluation(device, (3, side, side)) == batch
