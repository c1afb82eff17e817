"""Sets that torchvision fetches: read from small files in their real formats, and one message where there are none."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from conftest import raising
from small_sets import put_cifar, put_mnist
from toys import complaint

from args_helper import Config
from data.load import load_data
from data.sets import cifar10 as cifar
from data.sets import cifar100, mnist
from utils.run.lock import is_locked

SETS = {"CIFAR10": cifar, "CIFAR100": cifar100, "MNIST": mnist}
pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize(("name", "files"), [("CIFAR10", 5), ("CIFAR100", 1)])
def test_cifar_is_read_from_the_folder_of_the_data(name, files, tmp_path, monkeypatch):
    image = torch.from_numpy(put_cifar(tmp_path, name, monkeypatch))
    source = SETS[name].load(Config(dataset=name, data=str(tmp_path)))
    for part, count in ((source.train, files), (source.test, 1)):
        assert torch.equal(part.images, image.expand(3 * count, -1, -1, -1)) and part.images.dtype == torch.uint8
        assert part.labels.tolist() == [0, 1, 2] * count
    assert source.val is None and source.val_size == 5000


def test_mnist_is_read_from_the_folder_of_the_data(tmp_path):
    put_mnist(tmp_path, train=13, test=4)
    source = mnist.load(Config(dataset="MNIST", data=str(tmp_path)))
    for part, count in ((source.train, 13), (source.test, 4)):
        assert part.images.shape == (count, 1, 28, 28) and part.images.dtype == torch.uint8
        assert part.images[:, 0, 0, 0].tolist() == list(range(count))
        assert part.images[:, 0, -1, -1].tolist() == list(range(1, count + 1))
        assert part.labels.dtype == torch.int64
        assert part.labels.tolist() == [number % 10 for number in range(count)]


def test_mnist_is_unpacked_from_the_files_as_they_are_downloaded(tmp_path, monkeypatch):
    folder = put_mnist(tmp_path, zipped=True)
    checked = [(path.name, None) for path in folder.iterdir()]  # not against the checksums of the whole set
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", checked)
    assert len(mnist.load(Config(dataset="MNIST", data=str(tmp_path))).train) == 6


@pytest.mark.parametrize(
    ("name", "title", "why", "files"),
    [("CIFAR10", "CIFAR-10", "<urlopen error no route to host>", "cifar-10-python.tar.gz, or the folder "
      "cifar-10-batches-py that it unpacks to,"),
     ("CIFAR100", "CIFAR-100", "<urlopen error no route to host>", "cifar-100-python.tar.gz, or the folder "
      "cifar-100-python that it unpacks to,"),
     ("MNIST", "MNIST", "Error downloading train-images-idx3-ubyte.gz: .*", "the folder MNIST/raw with "
      "{train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not,")],
)  # fmt: skip
def test_a_set_without_files_and_without_a_network_is_one_clear_message(name, title, why, files, tmp_path):
    place = tmp_path / "nowhere"
    said = complaint(load_data, Config(dataset=name, data=str(place), device="cpu"))
    start = f"{title} is not in {place} and cannot be downloaded ("
    end = f"); put {files} into {place}, or name the folder that has it with --data"
    assert re.fullmatch(re.escape(start) + why + re.escape(end), said) and not place.exists()


@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError("not found or\n corrupted."), r"not found or corrupted\."), (AssertionError(), "AssertionError"),
     (PermissionError(13, "denied"), r"\[Errno 13\] denied")],
)  # fmt: skip
def test_it_is_said_why_a_set_cannot_be_had(error, why, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", raising(error))
    said = complaint(load_data, Config(dataset="CIFAR10", data=str(tmp_path), device="cpu"))
    assert re.search(rf"is not in .*\({why}\).*--data", said)


def test_a_set_that_is_not_there_is_downloaded_by_one_process_at_a_time(tmp_path, monkeypatch):
    asked = []

    def fetched(_root, train, download):
        asked.append((download, is_locked(tmp_path)))
        if len(asked) == 1:
            raise RuntimeError("not found")
        return SimpleNamespace(data=np.zeros((2, 32, 32, 3), np.uint8), targets=[0, 1])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fetched)
    for _ in range(2):
        cifar.load(Config(dataset="CIFAR10", data=str(tmp_path)))
    assert asked == [(False, False), (True, True), (True, True), (False, False), (False, False)]


def test_images_are_augmented_as_published():
    for spec in (cifar.SPEC, cifar100.SPEC):
        assert (spec.shape, spec.pad, spec.flip) == ((3, 32, 32), 4, True)
    assert (mnist.SPEC.shape, mnist.SPEC.pad, mnist.SPEC.flip) == ((1, 28, 28), 0, False)


def test_the_classes_of_cifar_100_are_in_the_order_of_its_labels():
    # Fine labels are numbered by the alphabet: the first, two from the middle, and the last of the set's own list.
    assert [cifar100.SPEC.classes[label] for label in (0, 47, 52, 99)] == ["apple", "maple_tree", "oak_tree", "worm"]
    assert list(cifar100.SPEC.classes) == sorted(cifar100.SPEC.classes)
