"""Readers of the data sets, on small files in the real formats."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.files import write_cifar10, write_idx, write_mnist
from training.config import Config
from training.datasets import read


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_digits():
    raw = read(Config(dataset="digits"))
    raw.check("digits")
    assert raw.train_inputs.shape[1:] == (1, 8, 8)
    assert raw.train_inputs.dtype == torch.uint8
    assert len(raw.train_labels) + len(raw.test_labels) == 1797
    assert len(raw.test_labels) == 359
    assert int(raw.train_inputs.max()) == 255
    assert raw.classes == tuple("0123456789")


def test_digits_are_the_same_every_time():
    first, second = (read(Config(dataset="digits")) for _ in range(2))
    assert torch.equal(first.test_inputs, second.test_inputs)
    assert torch.equal(first.train_labels, second.train_labels)


def test_moons():
    raw = read(Config(dataset="moons"))
    raw.check("moons")
    assert raw.train_inputs.shape == (1600, 2)
    assert raw.train_inputs.dtype == torch.float32
    assert raw.test_labels.bincount().min() > 100


@pytest.mark.parametrize(
    ("dataset", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_idx_files(dataset, name, tmp_path):
    write_mnist(tmp_path, name=name)
    raw = read(Config(dataset=dataset, data_dir=tmp_path))
    raw.check(dataset)
    assert raw.train_inputs.shape == (300, 1, 28, 28)
    assert raw.test_inputs.shape == (60, 1, 28, 28)
    assert raw.train_inputs.dtype == torch.uint8
    assert raw.train_labels.tolist() == [i % 10 for i in range(300)]
    assert raw.train_inputs[3, 0, 10].tolist() == [255] * 28
    assert len(raw.classes) == 10


def test_cifar_pickles(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    raw = read(Config(dataset="cifar10", data_dir=tmp_path))
    raw.check("cifar10")
    assert raw.train_inputs.shape == (150, 3, 32, 32)
    assert raw.train_inputs.dtype == torch.uint8
    assert raw.train_inputs.is_contiguous()
    first = np.load(folder / "data_batch_1", allow_pickle=True)["data"][0]
    assert raw.train_inputs[0].flatten().tolist() == first.tolist()
    assert raw.classes[3] == "class3"


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_without_files_and_network_the_message_says_how_to_go_on(dataset, tmp_path, no_network):
    with pytest.raises(ValueError, match="could not be downloaded") as raised:
        read(Config(dataset=dataset, data_dir=tmp_path / "here"))
    message = str(raised.value)
    for part in (dataset, str(tmp_path / "here"), "--data-dir", "--dataset digits"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("kept", [0, 3, 10, 16, 1000])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"])
def test_truncated_idx_images(file, kept, tmp_path):
    path = write_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"mnist in .* damaged.*Delete them"):
        read(Config(dataset="mnist", data_dir=tmp_path))


@pytest.mark.parametrize("kept", [0, 3, 6, 8, 20])
def test_truncated_idx_labels(kept, tmp_path):
    path = write_mnist(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"mnist in .* damaged"):
        read(Config(dataset="mnist", data_dir=tmp_path))


def test_idx_with_another_type_of_number(tmp_path):
    path = write_mnist(tmp_path) / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[2] = 0x0C
    path.write_bytes(content[: 8 + 4 * 75])
    with pytest.raises(ValueError, match="damaged"):
        read(Config(dataset="mnist", data_dir=tmp_path))


def test_labels_out_of_range(tmp_path):
    raw = write_mnist(tmp_path)
    write_idx(raw / "t10k-labels-idx1-ubyte", np.full(60, 10))
    with pytest.raises(ValueError, match=r"test set of mnist has labels from 10 to 10.*0 to 9"):
        read(Config(dataset="mnist", data_dir=tmp_path)).check("mnist")


def test_more_images_than_labels(tmp_path):
    raw = write_mnist(tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(7))
    with pytest.raises(ValueError, match="300 inputs but 7 labels"):
        read(Config(dataset="mnist", data_dir=tmp_path)).check("mnist")


def test_no_images(tmp_path):
    raw = write_mnist(tmp_path)
    write_idx(raw / "train-images-idx3-ubyte", np.zeros((0, 28, 28)))
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(0))
    with pytest.raises(ValueError, match=r"damaged|training set of mnist is empty"):
        read(Config(dataset="mnist", data_dir=tmp_path)).check("mnist")


def test_truncated_pickle_is_never_unpickled(tmp_path, monkeypatch, no_network):
    path = write_cifar10(tmp_path, monkeypatch) / "data_batch_2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not intact"):
        read(Config(dataset="cifar10", data_dir=tmp_path))


def test_damaged_pickle_with_the_right_checksum(tmp_path, monkeypatch):
    from torchvision import datasets

    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    with pytest.raises(ValueError, match="damaged"):
        read(Config(dataset="cifar10", data_dir=tmp_path))


@pytest.mark.skipif("MANUAL_OPS_DATA" not in os.environ, reason="MANUAL_OPS_DATA is not set")
def test_real_mnist():
    raw = read(Config(dataset="mnist", data_dir=Path(os.environ["MANUAL_OPS_DATA"])))
    raw.check("mnist")
    assert raw.train_inputs.shape == (60_000, 1, 28, 28)
    assert raw.test_inputs.shape == (10_000, 1, 28, 28)
    assert raw.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
