"""Data sets of image files: ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*``.

Decoding tens of thousands of small files takes far longer than reading the pixels, so they are
decoded once into a cache file. It is used only while it is whole (written to the side and moved
into place; its checksums are verified on reading) and while the listing of the folder, with sizes
and times of change, is the one it was made from.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from training.atomic import atomic_write
from training.config import Config
from training.image_file import opaque, open_upright
from training.raw import Raw

_Pixels = npt.NDArray[np.uint8]
_Arrays = dict[str, npt.NDArray[Any]]
_CACHE_FORMAT = "2"  # to be raised when the same files give other pixels


def read_folder(config: Config) -> Raw:
    """Read the images below ``config.data_dir``, from the cache if it is up to date.

    Raises:
        ValueError: The folders are not there, a class has no images, a file is no image, or the
            images differ in size.
        OSError: A file cannot be read.
    """
    root = config.data_dir
    classes = _classes(root / "train")
    unknown = set(_classes(root / "test")) - set(classes)
    if unknown:
        raise ValueError(f"{root / 'test'} has classes that train lacks: {sorted(unknown)}")
    train, test = (_listing(root / part, classes) for part in ("train", "test"))

    fingerprint = _fingerprint(root, [path for path, _ in train + test], config.image_size)
    arrays = _read_cache(root, fingerprint, len(train + test))
    if arrays is None:
        print(f"decoding {len(train) + len(test)} images in {root.absolute()}")
        arrays = {
            "images": _decode([path for path, _ in train + test], config.image_size),
            "labels": np.array([label for _, label in train + test], dtype=np.int64),
            "fingerprint": np.array(fingerprint),
        }
        _write_cache(root, arrays)
    inputs, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    return Raw(
        train_inputs=inputs[: len(train)],
        train_labels=labels[: len(train)],
        test_inputs=inputs[len(train) :],
        test_labels=labels[len(train) :],
        classes=classes,
    )


def _classes(directory: Path) -> tuple[str, ...]:
    """Return the names of the class folders in ``directory``, sorted."""
    if not directory.is_dir():
        raise ValueError(
            f"{directory.absolute()} is not a directory. --dataset folder reads "
            "DIR/train/CLASS/* and DIR/test/CLASS/*; name DIR with --data-dir"
        )
    names = sorted(
        entry.name
        for entry in os.scandir(directory)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise ValueError(f"{directory.absolute()} has no class folders")
    return tuple(names)


_NO_IMAGES = {"Thumbs.db", "desktop.ini"}  # what Windows leaves in folders of images


def _listing(directory: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return path and label of every visible file in the class folders, sorted by path."""
    listing: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = sorted(
            path
            for path in (directory / name).rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.name not in _NO_IMAGES
        )
        if not paths and (directory / name).is_dir():
            raise ValueError(f"{(directory / name).absolute()} holds no images")
        listing += [(path, label) for path in paths]
    return listing


def _decode(paths: list[Path], size: int | None) -> _Pixels:
    """Return the images as ``(N, C, H, W)``: one channel if all are grey, else three."""

    def open_image(path: Path) -> _Pixels:
        image = open_upright(path.absolute())
        if image.mode.startswith(("I", "F")):  # PIL would cut their values off at 255
            raise ValueError(f"{path.absolute()} has more than 8 bits per channel: convert it")
        image = opaque(image)
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes without holding the lock
        images = list(pool.map(open_image, paths))

    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"the images differ in size: {paths[0]} is {_size(images[0])}, {path} is "
                f"{_size(image)}. Pass --image-size to resize them all"
            )
    if all(image.ndim == 2 for image in images):
        return np.stack(images)[:, np.newaxis]
    coloured = (image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images)
    return np.ascontiguousarray(np.stack(list(coloured)).transpose(0, 3, 1, 2))


def _size(image: _Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _fingerprint(root: Path, paths: list[Path], size: int | None) -> str:
    """Return a digest of all that the decoded images depend on, short of reading them."""
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {size}".encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"\0{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _cache_files(root: Path) -> Iterator[Path]:
    """Yield the places for a folder's cache, best first: in the folder, or the user's own."""
    yield root / ".decoded.npz"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    yield user / "manual_ops" / f"{name}.npz"


def _read_cache(root: Path, fingerprint: str, count: int) -> _Arrays | None:
    """Return the arrays of an intact cache with this fingerprint, if there is one."""
    found = (_load(file, fingerprint, count) for file in _cache_files(root))
    return next((arrays for arrays in found if arrays is not None), None)


def _load(file: Path, fingerprint: str, count: int) -> _Arrays | None:
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as members:
            arrays = dict(members)
            images, labels = arrays["images"], arrays["labels"]
            known = str(arrays["fingerprint"]) == fingerprint
            whole = images.ndim == 4 and len(images) == len(labels) == labels.size == count
            typed = images.dtype == np.uint8 and labels.dtype == np.int64
    except Exception:  # absent, or damaged: zipfile, zlib, struct and numpy each say it their way
        return None
    return arrays if known and whole and typed else None


def _write_cache(root: Path, arrays: _Arrays) -> None:
    """Keep the arrays in the first place that can be written to."""
    if not any(_save(file, arrays) for file in _cache_files(root)):
        warnings.warn(
            f"no place to keep the decoded images of {root}; they are decoded again next time",
            stacklevel=2,
        )


def _save(file: Path, arrays: _Arrays) -> bool:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as opened:
            np.savez(opened, allow_pickle=False, **arrays)
    except OSError:  # read-only, or full
        return False
    return True
