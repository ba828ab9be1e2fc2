"""Readers of the data sets, each a function from settings to raw tensors on the CPU."""

import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import Config
from training.folder import read_folder
from training.raw import Raw

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer; torchvision itself would wait for ever


def read(config: Config) -> Raw:
    """Read the data set that ``config`` names.

    Raises:
        ValueError: It is absent and cannot be downloaded, or its files are damaged.
        OSError: Its files cannot be read.
    """
    return _READERS[config.dataset](config)


def _digits(config: Config) -> Raw:
    """1,797 handwritten digits of 8x8 pixels; a fifth is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # scikit-learn's go up to 16
    images = torch.from_numpy(pixels).unsqueeze(1)
    return _hold_out_test(images, torch.from_numpy(digits.target).long(), tuple("0123456789"))


def _moons(config: Config) -> Raw:
    """2,000 points of two interleaved half circles with noise; a fifth is the test set."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(2000, noise=0.15, random_state=0)
    return _hold_out_test(
        torch.from_numpy(points).float(), torch.from_numpy(labels).long(), ("upper", "lower")
    )


def _hold_out_test(inputs: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Raw:
    """Set a fixed fifth of a data set that has no test set of its own apart."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order.split([len(order) // 5, len(order) - len(order) // 5])
    return Raw(inputs[train], labels[train], inputs[test], labels[test], classes)


def _torchvision(config: Config) -> Raw:
    """MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 in torchvision's layout."""
    from torchvision import datasets  # takes seconds to import: only where it is needed

    data_set = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }[config.dataset]
    train, test = (_open(data_set, config, train=train) for train in (True, False))
    return Raw(
        train_inputs=_as_images(train.data),
        train_labels=torch.as_tensor(train.targets),
        test_inputs=_as_images(test.data),
        test_labels=torch.as_tensor(test.targets),
        classes=tuple(train.classes),
    )


def _open(data_set: Callable[..., Any], config: Config, *, train: bool) -> Any:
    """Return one half of a torchvision data set, downloaded if it is not there.

    Raises:
        ValueError: It is absent and cannot be downloaded, or its files are damaged.
    """
    try:
        return data_set(config.data_dir, train=train)
    except _UNREADABLE as error:
        if "not found" not in str(error):  # torchvision's word for absent files
            raise ValueError(
                f"the files of {config.dataset} in {config.data_dir.absolute()} are damaged "
                f"({type(error).__name__}: {error}). Delete them there to download them again"
            ) from error
    _download(data_set, config)
    return data_set(config.data_dir, train=train)


# What torchvision's readers raise on IDX and pickle files that are cut short or overwritten.
_UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def _download(data_set: Callable[..., Any], config: Config) -> None:
    print(f"{config.dataset} is not in {config.data_dir.absolute()}; downloading it")
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            data_set(config.data_dir, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{config.dataset} was not found, or not intact, in {config.data_dir.absolute()} and "
            "could not be downloaded. Name the directory that holds it with --data-dir, or train "
            f"without a download: --dataset digits ({_last_line(error)})"
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


def _as_images(data: Any) -> Tensor:
    """Return torchvision's ``(N, H, W)`` or ``(N, H, W, 3)`` as ``(N, C, H, W)`` uint8."""
    images = torch.as_tensor(data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous()


_READERS: dict[str, Callable[[Config], Raw]] = {
    "digits": _digits,
    "moons": _moons,
    "mnist": _torchvision,
    "fashion-mnist": _torchvision,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
    "folder": read_folder,
}
