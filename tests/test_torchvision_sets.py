"""Sets that torchvision fetches: read from small files in their real formats, and one message where there are none."""

import numpy as np
import pytest
import torch
import torchvision.datasets
from small_sets import put_cifar, put_mnist

from args_helper import Config
from data.load import load_data
from data.sets import cifar10 as cifar
from data.sets import cifar100, mnist
from utils.errors import UserError

SETS = {"CIFAR10": cifar, "CIFAR100": cifar100, "MNIST": mnist}
pytestmark = pytest.mark.usefixtures("offline")


class FewImages:
    """Stands in for a CIFAR of torchvision's: 5,040 and 10 images; image i has i's digits as its first two pixels."""

    def __init__(self, root, train, download):
        assert download
        count = 5040 if train else 10
        self.data = np.zeros((count, 32, 32, 3), dtype=np.uint8)
        self.data[:, 0, 0, 0], self.data[:, 0, 1, 2] = np.arange(count) // 100, np.arange(count) % 100
        self.targets = [i % 10 for i in range(count)]


def number_of(images):
    return images[:, 0, 0, 0].long() * 100 + images[:, 2, 0, 1].long()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_holds_out_5000_training_images(name, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, name, FewImages)
    splits = load_data(Config(dataset=name, device="cpu"))
    assert (len(splits.train.images), len(splits.val), len(splits.test)) == (40, 5000, 10)
    full = load_data(Config(dataset=name, device="cpu", use_full_data=True))
    numbers = number_of(full.train.images.images)
    assert full.val is None
    assert torch.equal(numbers, torch.arange(5040))
    assert torch.equal(full.train.images.labels, numbers % 10)
    assert torch.equal(splits.train.images.labels, number_of(splits.train.images.images) % 10)


@pytest.mark.parametrize(("name", "files"), [("CIFAR10", 5), ("CIFAR100", 1)])
def test_cifar_is_read_from_the_folder_of_the_data(name, files, tmp_path, monkeypatch):
    image = torch.from_numpy(put_cifar(tmp_path, name, monkeypatch))
    source = SETS[name].load(Config(dataset=name, data=str(tmp_path)))
    assert source.train.images.shape == (3 * files, 3, 32, 32) and source.train.images.dtype == torch.uint8
    assert torch.equal(source.train.images, image.expand(3 * files, -1, -1, -1))
    assert source.train.labels.tolist() == [0, 1, 2] * files
    assert source.test.labels.tolist() == [0, 1, 2]
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
    ("name", "title", "files"),
    [
        ("CIFAR10", "CIFAR-10", "cifar-10-python.tar.gz, or the folder cifar-10-batches-py that it unpacks to,"),
        ("CIFAR100", "CIFAR-100", "cifar-100-python.tar.gz, or the folder cifar-100-python that it unpacks to,"),
    ],
)
def test_cifar_without_files_and_without_a_network_is_one_clear_message(name, title, files, tmp_path):
    with pytest.raises(UserError) as raised:
        load_data(Config(dataset=name, data=str(tmp_path / "nowhere"), device="cpu"))
    assert str(raised.value) == (
        f"{title} is not in {tmp_path}/nowhere and cannot be downloaded (<urlopen error no route to host>); put "
        f"{files} into {tmp_path}/nowhere, or name the folder that has it with --data"
    )


def test_mnist_without_files_and_without_a_network_is_one_clear_message(tmp_path):
    with pytest.raises(UserError) as raised:
        load_data(Config(dataset="MNIST", data=str(tmp_path / "nowhere"), device="cpu"))
    message = str(raised.value)
    assert message.startswith(f"MNIST is not in {tmp_path}/nowhere and cannot be downloaded (Error downloading train-")
    assert message.endswith(
        "put the folder MNIST/raw with {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not, into "
        f"{tmp_path}/nowhere, or name the folder that has it with --data"
    )
    assert "\n" not in message


def test_a_file_of_mnist_that_was_cut_off_is_no_traceback(tmp_path):
    images = put_mnist(tmp_path) / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:100])
    with pytest.raises(UserError, match=r"MNIST is not in .*--data"):
        load_data(Config(dataset="MNIST", data=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "error", [RuntimeError("File not found or corrupted."), PermissionError(13, "denied"), AssertionError()], ids=repr
)
def test_it_is_said_why_a_set_cannot_be_had(name, error, monkeypatch):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(torchvision.datasets, name, fail)
    with pytest.raises(UserError, match=r"is not in .*\(.*(corrupted|denied|AssertionError).*\).*--data"):
        load_data(Config(dataset=name, device="cpu"))


def test_images_are_augmented_as_published():
    for spec in (cifar.SPEC, cifar100.SPEC):
        assert (spec.shape, spec.pad, spec.flip) == ((3, 32, 32), 4, True)
    assert (mnist.SPEC.shape, mnist.SPEC.pad, mnist.SPEC.flip) == ((1, 28, 28), 0, False)


def test_the_classes_of_cifar_100_are_in_the_order_of_its_labels():
    # Fine labels are numbered by the alphabet: the first, two from the middle, and the last of the set's own list.
    assert [cifar100.SPEC.classes[label] for label in (0, 47, 52, 99)] == ["apple", "maple_tree", "oak_tree", "worm"]
    assert list(cifar100.SPEC.classes) == sorted(cifar100.SPEC.classes)
