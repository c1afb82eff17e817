"""Streamed batches: as those from memory, from any number of workers, and only of images that are asked for."""

import threading
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from conftest import raising, same_bits
from PIL import ExifTags, Image
from small_sets import put_noise
from toys import complaint, seeded, whole

from args_helper import parse_args
from data.crops import crop_box
from data.device_decode import device_decoder
from data.image_files import ImageFiles
from data.packs.folder import PackedFolder
from data.packs.pack import read_pack
from data.packs.packing import pack_folder
from data.spec import DataSpec
from data.streamed_batches import StreamedPlainBatches, StreamedTrainBatches, _Stream
from utils.distributed.launch import usable_workers

SPEC = DataSpec((3, 8, 8), ("a",), (0.0,) * 3, (1 / 255,) * 3, flip=True, zoom=True)
"""Its statistics leave pixels as they are, 0 to 255."""
PLAIN = replace(SPEC, flip=False, zoom=False)
COUNT = 22


def put(root, images):
    """Write images as numbered files; the label of each is its number."""
    names = [f"{number}.png" for number in range(len(images))]
    for name, image in zip(names, images):
        image.save(root / name)
    return ImageFiles.of(root, names, range(len(names)))


@pytest.fixture
def files(tmp_path):
    """Images of one colour, red 10 times their number, each of another size."""
    return put(tmp_path, [Image.new("RGB", (20 + n, 30 - n), (10 * n, 3, 5)) for n in range(COUNT)])


@pytest.fixture
def noise(tmp_path):
    return ImageFiles.of(tmp_path, put_noise(tmp_path, 12), range(12))


def training(files, spec=SPEC, size=5, workers=0):
    return StreamedTrainBatches(files, spec, size, "cpu", workers)


# ---- training ------------------------------------------------------------------------------------------------------


def epoch(files, spec=SPEC, size=5, workers=0, seed=0):
    return list(training(files, spec, size, workers).epoch(seeded(seed)))


def test_batches_are_the_same_with_any_number_of_workers_and_images_are_cropped_anew_in_every_epoch(noise):
    assert same_bits(epoch(noise), epoch(noise, workers=2))
    one = noise.subset(torch.tensor([0]))
    assert len({tuple(whole(epoch(one, seed=seed))[0].flatten().tolist()) for seed in range(4)}) == 4
    assert same_bits(*(list(training(one).unaugmented().epoch(seeded(seed))) for seed in (1, 2)))


def test_batches_that_are_left_out_are_not_decoded(files, tmp_path):
    train = training(files)
    skipped = whole(list(train.epoch(seeded(3)))[:3])[1].tolist()
    for number in skipped:
        (tmp_path / f"{number}.png").unlink()
    assert len(skipped) + len(whole(train.epoch(seeded(3), 3))[1]) == COUNT


def test_half_of_the_images_are_mirrored_and_without_flip_none(tmp_path):
    half = Image.new("RGB", (8, 8))
    half.paste((255, 255, 255), (4, 0, 8, 8))
    pictures = put(tmp_path, [half] * 100)
    mirrored, _ = whole(epoch(pictures, replace(PLAIN, flip=True)))
    assert 30 < (mirrored[:, 0, 0, 0] > 128).sum() < 70
    as_they_are, _ = whole(epoch(pictures, PLAIN))
    assert (as_they_are[:, 0, 0, 0] < 128).all() and (as_they_are[:, 0, 0, -1] > 128).all()


def test_what_is_trained_on_is_the_part_of_the_crop_box(tmp_path):
    # Red counts rows and green columns, so that an image tells which part of the file's it is.
    ramp = np.stack([*np.mgrid[0:64, 0:96], np.zeros((64, 96))], 2).astype(np.uint8)
    images, _ = whole(epoch(put(tmp_path, [Image.fromarray(ramp)] * 20), replace(SPEC, flip=False)))
    # Eight pixels across a part of h rows have their centres 7/8 h apart.
    found = (images[:, 0].amax((1, 2)) - images[:, 0].amin((1, 2))) * 8 / 7
    assert found.max() > 1.5 * found.min() and found.max() <= 66
    assert len(set(images[:, 1].amax((1, 2)).tolist())) > 5
    assert (images[:, 0, 1:] >= images[:, 0, :-1]).all() and (images[:, 1, :, 1:] >= images[:, 1, :, :-1]).all()


# ---- the crop box --------------------------------------------------------------------------------------------------


def test_crop_boxes_lie_in_the_image_and_are_spread_over_all_that_is_allowed():
    boxes = torch.tensor([crop_box(300, 400, seed) for seed in range(2000)]).double()
    top, left, high, wide = boxes.unbind(1)
    assert (boxes >= 0).all() and (top + high <= 300).all() and (left + wide <= 400).all()
    share, shape = high * wide / (300 * 400), wide / high
    assert 0.079 < share.min() < 0.1 and 0.9 < share.max() <= 1
    assert 0.74 < shape.min() < 0.76 and 1.31 < shape.max() < 1.35
    free = 300 - high
    assert abs((top / free)[free > 20].mean() - 0.5) < 0.03
    square = torch.tensor([crop_box(200, 200, seed) for seed in range(2000)]).double()
    assert (square[:, 3] / square[:, 2]).log().mean().abs() < 0.02  # as often wide as tall


NARROW = [(10, 1000, (0, 493, 10, 13)), (1000, 9, (494, 0, 12, 9)), (1, 1, (0, 0, 1, 1))]


@pytest.mark.parametrize(("height", "width", "box"), NARROW)
def test_of_a_narrow_image_the_middle_is_taken(height, width, box):
    assert crop_box(height, width, 3) == box


# ---- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_goes_through_all_images_in_order_and_training_through_the_same_pixels(files, workers):
    spec = replace(PLAIN, mean=(0.2, 0.5, 0.7), std=(0.3, 0.25, 0.5))
    plain = StreamedPlainBatches(files, spec, 8, "cpu", workers)
    images, labels = whole(plain)
    assert len(plain) == COUNT and labels.tolist() == list(range(COUNT))
    reds = ((10 * labels / 255 - 0.2) / 0.3).view(-1, 1, 1).expand(-1, 8, 8)
    torch.testing.assert_close(images[:, 0], reds, atol=1e-6, rtol=0)
    assert same_bits(list(plain), list(plain))
    trained, order = whole(epoch(files, spec, workers=workers))
    assert torch.equal(trained, images[order])


def test_evaluated_images_are_the_middles_of_a_shorter_side_256_for_224(tmp_path):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 128, 3))
    pictures = put(tmp_path, [Image.fromarray(ramp)])
    images, _ = whole(StreamedPlainBatches(pictures, replace(SPEC, shape=(3, 56, 56)), 8, "cpu", 0))
    # The 64 rows stay as they are, and the middle 56 of them begin with the fourth.
    assert images[0, 0, :, 0].tolist() == list(range(4, 60))


# ---- JPEGs decoded in batches, as on a GPU -------------------------------------------------------------------------


LARGER = replace(SPEC, shape=(3, 16, 16))


def put_mixed(root):
    """Write JPEGs, which are decoded together, and images that are read one by one; return them as files."""
    pytest.importorskip("torchcodec", minversion="0.17", exc_type=(ImportError, OSError))
    draw = np.random.default_rng(0)
    (root / "train" / "a").mkdir(parents=True)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    kinds = [("0.jpg", "RGB", 20, {}), ("1.jpg", "L", 20, {}), ("2.png", "RGB", 20, {}), ("3.jpg", "CMYK", 20, {}),
             ("4.jpg", "RGB", 20, {"exif": turned}), ("5.jpg", "RGB", 200, {}), ("6.jpg", "RGB", 12, {}),
             ("7.jpg", "RGB", 20, {"progressive": True})]  # fmt: skip
    for name, mode, side, how in kinds:
        noise = Image.fromarray(draw.integers(0, 256, (side, side + 4, 3), dtype=np.uint8))
        noise.convert(mode).save(root / "train" / "a" / name, **how)
    return ImageFiles.of(root, [f"train/a/{name}" for name, *_ in kinds], range(len(kinds)))


@pytest.fixture
def together(monkeypatch):
    """The number of JPEGs in each batch that was decoded together."""
    found = []

    def watched(device):
        decode = device_decoder(device)
        return lambda encoded: (found.append(len(encoded)), decode(encoded))[1]

    monkeypatch.setattr("data.streamed_batches.device_decoder", watched)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_packed", [False, True])
def test_jpegs_decoded_together_have_the_pixels_of_those_decoded_one_by_one(tmp_path, together, is_packed, workers):
    images = put_mixed(tmp_path)
    if is_packed:
        pack_folder(parse_args(["--pack", str(tmp_path), "--pack_to", str(tmp_path / "pack")]))
        images = PackedFolder(read_pack(tmp_path / "pack"))
        images = images.joined([""], [(images / "train" / "a").images()], [0])
    one_by_one, here = (StreamedTrainBatches(images, LARGER, 3, "cpu", workers, where) for where in (False, True))
    for seed in range(3):
        assert same_bits(list(one_by_one.epoch(seeded(seed))), list(here.epoch(seeded(seed))))
    assert same_bits(list(one_by_one.unaugmented().epoch(seeded())), list(here.unaugmented().epoch(seeded())))
    assert same_bits(one_by_one.stratified(2, seeded()), here.stratified(2, seeded()))
    together.clear()
    evaluated = [StreamedPlainBatches(images, LARGER, 8, "cpu", workers, where) for where in (False, True)]
    assert same_bits(*map(list, evaluated))
    # A pack holds all images as JPEGs; one of 200 pixels is decoded to an eighth of it.
    assert together == [7 if is_packed else 4]


@pytest.mark.parametrize(
    ("damaged", "in_batch"),
    [(lambda whole: whole[:-100], 3), (lambda whole: whole[:-200] + b"\xff\xc4" + whole[-198:], 4)],
    ids=["cut off", "broken"],
)
def test_a_damaged_jpeg_among_those_decoded_together_is_named(tmp_path, together, damaged, in_batch):
    images = put_mixed(tmp_path)
    path = tmp_path / "train" / "a" / "0.jpg"
    path.write_bytes(damaged(path.read_bytes()))
    said = complaint(list, StreamedPlainBatches(images, LARGER, 8, "cpu", 0, True))
    assert said.startswith(f"{path} is not a readable image (") and together == [in_batch]


def test_images_that_do_not_fit_on_the_gpu_are_not_left_to_the_cpu_unnoticed(tmp_path, monkeypatch):
    full = raising(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (originally from aten::empty)"))
    monkeypatch.setattr("data.streamed_batches.device_decoder", lambda device: full)
    images = ImageFiles.of(tmp_path, put_noise(tmp_path, 2), [0, 0])
    with pytest.raises(RuntimeError, match="out of memory"):
        list(StreamedPlainBatches(images, SPEC, 2, "cpu", 1, True))


def test_the_threads_of_every_epoch_decode_on_the_same_streams(tmp_path, monkeypatch):
    images, used = ImageFiles.of(tmp_path, put_noise(tmp_path, 8), [0] * 8), []
    for name, instead in (("Stream", lambda *_: object()), ("set_stream", used.append), ("set_device", id)):
        monkeypatch.setattr(torch.cuda, name, instead)
    monkeypatch.setattr(_Stream, "_batch", lambda self, work: (torch.zeros(len(work[0])), None))
    monkeypatch.setattr("data.streamed_batches.usable_workers", lambda asked: asked)
    for _ in range(3):
        stream = _Stream(images, SPEC, "cpu", 2, False)
        stream.device, stream.on_device = torch.device("cuda:7"), True
        list(stream._decoded([(torch.arange(2), None, None)] * 8))
    assert len(used) >= 3 and len({*map(id, used)}) <= 2


@pytest.mark.parametrize("found", ["0.16.0", "0.16a1", None])
def test_a_missing_or_old_decoder_is_one_clear_message(monkeypatch, found):
    def version(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("data.device_decode.version", version)
    said = complaint(device_decoder, torch.device("cpu"))
    assert said.startswith("decode_on: cuda needs TorchCodec 0.17 or newer (") and (found or "torchcodec") in said


def test_a_decoder_that_cannot_decode_here_is_told_at_once_instead_of_leaving_every_image_to_the_cpu(monkeypatch):
    pytest.importorskip("torchcodec", minversion="0.17", exc_type=(ImportError, OSError))
    unable = raising(RuntimeError("torchcodec was not compiled with nvJPEG support"))
    monkeypatch.setattr("torchcodec.decoders.decode_jpeg", unable)
    assert "(torchcodec was not compiled with nvJPEG support)" in complaint(device_decoder, torch.device("cpu"))


# ---- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_clear_message(files, tmp_path, workers):
    (tmp_path / "7.png").write_bytes(b"no image")
    said = complaint(epoch, files, workers=workers)
    assert said.startswith(f"{tmp_path / '7.png'} is not a readable image (") and "Traceback" not in said


def test_an_epoch_that_is_left_early_leaves_no_threads_and_those_of_the_computation_as_they_were(files):
    before, computing = threading.active_count(), torch.get_num_threads()
    batches = training(files, size=1, workers=2).epoch(seeded())
    next(batches)
    assert threading.active_count() == before + usable_workers(2)
    batches.close()
    assert (threading.active_count(), torch.get_num_threads()) == (before, computing)


def test_there_are_no_more_workers_than_processors(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert [usable_workers(asked) for asked in (0, 2, 3, 64)] == [0, 2, 3, 3]
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_workers(4) == 1


def test_names_need_not_be_ascii(tmp_path):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "größe.png")
    images = ImageFiles.of(tmp_path, ["größe.png"], [0])
    assert images.path(0) == tmp_path / "größe.png"
    assert len(list(StreamedPlainBatches(images, SPEC, 4, "cpu", 0))) == 1
