"""Small data sets in the real file formats."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 ``array`` as an IDX file, the format of MNIST."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, train: int = 300, test: int = 60, name: str = "MNIST") -> Path:
    """Write random images with a bright row that tells the class; return the raw directory."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 100, (count, 28, 28))
        images[np.arange(count), 2 * labels + 4] = 255
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return raw


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 30) -> Path:
    """Write CIFAR-10's pickle files and make torchvision expect their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = (np.arange(per_batch) % 10).tolist()
        return [name, write(name, {"data": pixels, "labels": labels})]

    cifar = datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(cifar, "test_list", [batch("test_batch")])
    names = {"label_names": [f"class{i}" for i in range(10)]}
    monkeypatch.setitem(cifar.meta, "md5", write("batches.meta", names))
    return folder


def write_folder(root: Path, classes: str = "ab", count: int = 6, mode: str = "RGB") -> Path:
    """Write ``count`` 10x8 PNG images for each class into ``root/train`` and ``root/test``."""
    rng = np.random.default_rng(0)
    shape = (8, 10, 3) if mode == "RGB" else (8, 10)
    for part in ("train", "test"):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root
